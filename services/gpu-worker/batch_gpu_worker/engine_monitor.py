"""Looks after the engine: replaces one that is frozen or too large, makes room after it ran out of
memory, and says in the log what became of each.

Frozen is an engine that holds requests, has made no token and answered none for
engine_frozen_seconds, and does not answer a canary within engine_canary_seconds either. Its health
endpoint proves nothing: it answers while the part that computes hangs. Leases are kept while the
engine is replaced, and its requests are tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import psutil
import structlog
from prometheus_client import CollectorRegistry

from batch_gpu_worker.admission import Admission
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.engines.choice import Chosen
from batch_gpu_worker.engines.death import Death
from batch_gpu_worker.gpu import GpuMeter
from batch_gpu_worker.online_load import OnlineLoad
from batch_gpu_worker.ward import Ward
from vllm_batch.clock import Clock
from vllm_batch.errors import EngineFailed, EngineUnavailable
from vllm_batch.events import Event, WorkerEngineRestarted
from vllm_batch.ids import WorkerId
from vllm_batch.metrics.worker import EngineMetrics
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

LOOK_SECONDS_MAX = 2.0
LOOKS_PER_LIMIT = 8
GPU_FREE_SECONDS = 10.0
PAUSE_SECONDS = 0.05
DEATHS_IN_VAIN_MAX = 30
"""Finding one poisoned request among 256 costs 10 deaths, with no answer between them at worst."""
_BLAMED = frozenset({"crashed", "frozen"})
_TROUBLE = _BLAMED | {"out_of_memory"}


class EngineMonitor:
    """Owns the decision when an engine is ended; ``restarts`` counts its deaths."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        ward: Ward,
        settings: Settings,
        *,
        worker_id: WorkerId,
        clock: Clock,
        gpus: GpuMeter,
        online: OnlineLoad,
        record: Callable[[Event], Awaitable[None]],
        metrics: EngineMetrics | None = None,
    ) -> None:
        self.restarts = 0
        self.rss_bytes = 0
        self._engine = engine
        self._admission = admission
        self._online = online
        self._ward = ward
        self._worker_id = worker_id
        self._clock = clock
        self._gpus = gpus
        self._record = record
        self._metrics = metrics or EngineMetrics(CollectorRegistry())
        self._frozen_seconds = settings.engine_frozen_seconds
        self._canary_seconds = settings.engine_canary_seconds
        self._rss_bytes_max = settings.engine_rss_bytes_max
        self._look_seconds = min(LOOK_SECONDS_MAX, settings.engine_frozen_seconds / LOOKS_PER_LIMIT)
        self._seen: tuple[int | None, int] = (None, 0)
        self._progressed_at = clock.monotonic()
        self._deaths: asyncio.Queue[WorkerEngineRestarted] = asyncio.Queue()
        self._answers_at_death = 0
        self._in_vain = 0
        self._broken = asyncio.Event()
        self._replacing = asyncio.Lock()
        self._emptying: ExitStack | None = None

    @property
    def emptying(self) -> bool:
        """Whether the engine is to run empty, because it will be replaced."""
        return self._emptying is not None

    @property
    def progress_age_seconds(self) -> float:
        """Seconds since the last sign of progress while the engine holds a request, else 0."""
        if not self._in_engine or not self._engine.ready.is_set():
            return 0.0
        return max(0.0, self._clock.monotonic() - self._progressed_at)

    def note_death(self, death: Death) -> None:
        """Take note of an engine's end, before the next one starts."""
        self._metrics.restarts.labels(death.reason).inc()
        if death.reason == "swapped":
            self._ward.engine_died(blame=False)
            return
        self.restarts += 1
        tell = log.error if death.reason in _TROUBLE else log.warning
        tell(
            "the engine ended",
            reason=death.reason,
            detail=death.detail,
            in_flight=self._in_engine,
        )
        blame = death.reason in _BLAMED
        if death.reason == "out_of_memory":
            blame = self._engine.max_num_seqs == 1  # with one at a time it is that one's doing
            self._engine.max_num_seqs = max(1, self._engine.max_num_seqs // 2)
            self._admission.resize(self._engine.max_num_seqs)
        self._ward.engine_died(blame=blame)
        self._count_in_vain(death)
        self._progressed_at = self._clock.monotonic()
        self._deaths.put_nowait(
            WorkerEngineRestarted(
                worker_id=self._worker_id,
                reason=death.reason,
                detail=death.detail,
                max_num_seqs=self._engine.max_num_seqs,
            )
        )

    async def wait_given_up(self) -> None:
        """Wait until the engine is taken for broken, if ever.

        Raises:
            EngineFailed: it died again and again and answered nothing in between.
        """
        await self._broken.wait()
        raise EngineFailed(f"the engine died {DEATHS_IN_VAIN_MAX} times and answered nothing")

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._look_seconds if self._emptying is None else PAUSE_SECONDS)
            if self._engine.ready.is_set():
                await self.look()

    async def announce(self) -> None:
        """Record for ever what became of engines."""
        while True:
            await self._record(await self._deaths.get())

    async def look(self) -> None:
        """Look once, and act on what is seen."""
        await self._look_at_progress()
        if self.progress_age_seconds >= self._frozen_seconds and not await self._canary_answers():
            await self._look_at_progress()
            age = self.progress_age_seconds
            if age >= self._frozen_seconds:  # nothing came while the canary waited either
                detail = f"no token for {age:.3g} s, and no canary was answered"
                await self.replace(Death("frozen", detail))
        await self._look_at_memory()

    async def replace(
        self, death: Death, between: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """End the engine for the reason given, do ``between``, and have it start again."""
        async with self._replacing:
            holding = await asyncio.to_thread(self._own_holders)
            try:
                await self._engine.halt(death)
                await self._wait_gpu_free(holding)
                if between is not None:
                    await between()
            finally:
                self._engine.resume()

    async def swap(self, chosen: Chosen) -> None:
        """End the engine, which should be empty, and have it run another model.

        Raises:
            EngineFailed: it cannot run it, in its last words; it goes back to the one before.
        """

        async def choose() -> None:
            self._engine.choose(chosen)

        await self.replace(Death("swapped", f"for {chosen.base.name}"), choose)
        await self._engine.settled()

    @property
    def _in_engine(self) -> int:
        return self._admission.in_engine + self._online.in_flight

    def _count_in_vain(self, death: Death) -> None:
        """It is no request's fault when none at all is answered any more."""
        answers = self._admission.engine_answers + self._online.answered
        if answers != self._answers_at_death:
            self._answers_at_death, self._in_vain = answers, 0
        self._in_vain += death.reason in _TROUBLE
        if self._in_vain >= DEATHS_IN_VAIN_MAX:
            self._broken.set()

    async def _look_at_progress(self) -> None:
        try:
            async with asyncio.timeout(self._canary_seconds):
                tokens = await self._engine.progress()
        except (EngineUnavailable, TimeoutError):
            tokens = self._seen[0]
        seen = (tokens, self._admission.answered + self._online.answered)
        if seen != self._seen or not self._in_engine:
            self._seen = seen
            self._progressed_at = self._clock.monotonic()

    async def _canary_answers(self) -> bool:
        try:
            async with asyncio.timeout(self._canary_seconds):
                await self._engine.canary()
        except (EngineUnavailable, TimeoutError) as error:
            log.warning("the engine answers no canary", error=repr(error))
            return not self._engine.ready.is_set()  # it ended by itself: that is dealt with
        self._progressed_at = self._clock.monotonic()
        return True

    async def _look_at_memory(self) -> None:
        """Let an engine that is too large run empty, and replace it then."""
        pid = self._engine.pid
        self.rss_bytes = await asyncio.to_thread(rss_with_children, pid) if pid else 0
        too_large = 0 < self._rss_bytes_max < self.rss_bytes
        if too_large and self._emptying is None:
            log.warning("the engine is too large", bytes=self.rss_bytes, limit=self._rss_bytes_max)
            self._emptying = ExitStack()
            self._emptying.enter_context(self._admission.paused())
        busy = self._admission.in_flight + self._online.in_flight
        if self._emptying is None or (too_large and busy):
            return
        emptying, self._emptying = self._emptying, None
        with emptying:
            if too_large:
                detail = f"{self.rss_bytes} bytes in memory, {self._rss_bytes_max} allowed"
                await self.replace(Death("memory_limit", detail))

    async def _wait_gpu_free(self, holding: set[int]) -> None:
        """Wait until the GPUs know nothing more of the engine's processes, within limits."""
        deadline = self._clock.monotonic() + GPU_FREE_SECONDS
        while left := holding & (await asyncio.to_thread(self._gpus.holders)).keys():
            if self._clock.monotonic() > deadline:
                log.error("the engine is gone, its GPU memory is not", pids=sorted(left))
                return
            await asyncio.sleep(PAUSE_SECONDS)

    def _own_holders(self) -> set[int]:
        return {pid for pid in self._gpus.holders() if self._engine.owns(pid)}


def rss_with_children(pid: int) -> int:
    """Return the bytes that a process and all below it have in memory; 0 when it is gone."""
    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(rss(process) for process in family)


def rss(process: psutil.Process) -> int:
    """Return the bytes that one process has in memory; 0 when it is gone."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
