"""Says every few seconds that the worker lives and how it does. Telemetry: some may be lost."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Literal

import msgspec
import nats.errors
import psutil
import structlog
from nats.aio.client import Client

from batch_gpu_worker.admission import Admission, in_flight_max
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.gpu import GpuMeter
from batch_gpu_worker.holdings import Holdings
from vllm_batch.clock import Clock
from vllm_batch.heartbeats import GpuMetrics, Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

State = Literal["starting", "ready", "draining", "failed"]


class HeartbeatSender:
    """Publishes the worker's state every heartbeat_seconds; the agent sets ``phase`` and
    ``models``."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        *,
        worker_id: WorkerId,
        engine: Engine,
        admission: Admission,
        holdings: Holdings,
        clock: Clock,
    ) -> None:
        self.phase: State = "starting"
        self.models: list[str] = []
        self._client = client
        self._settings = settings
        self._worker_id = worker_id
        self._engine = engine
        self._admission = admission
        self._holdings = holdings
        self._clock = clock
        self._gpus = GpuMeter()
        self._measured = (clock.monotonic(), 0, 0)

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await self.send()
            await asyncio.sleep(self._settings.heartbeat_seconds)

    async def send(self) -> None:
        """Send one now."""
        heartbeat = await self._heartbeat()
        if not self._client.is_connected:
            return  # an old heartbeat that arrives late would say nothing true
        try:
            await self._client.publish(
                subjects.heartbeat(self._worker_id), msgspec.json.encode(heartbeat)
            )
        except nats.errors.Error as error:
            log.debug("no heartbeat", error=repr(error))

    async def _heartbeat(self) -> Heartbeat:
        admission = self._admission
        engine_pid = self._engine.pid
        rss, gpus = await asyncio.to_thread(self._read_machine, engine_pid)
        now = self._clock.monotonic()
        before, answered, tokens = self._measured
        self._measured = (now, admission.answered, admission.output_tokens)
        seconds = max(now - before, 1e-3)
        return Heartbeat(
            worker_id=self._worker_id,
            name=self._settings.worker_name,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=self._clock.now(),
            state=self._state(),
            engine=self._settings.engine,
            engine_pid=engine_pid,
            models=self.models,
            in_flight=admission.in_flight,
            in_flight_max=in_flight_max(self._settings),
            leases=len(self._holdings),
            requests_per_second=(admission.answered - answered) / seconds,
            output_tokens_per_second=(admission.output_tokens - tokens) / seconds,
            rss_bytes=rss,
            gpus=gpus,
        )

    def _state(self) -> State:
        if self.phase == "ready" and not self._engine.ready.is_set():
            return "starting"  # its engine restarts
        return self.phase

    def _read_machine(self, engine_pid: int | None) -> tuple[int, list[GpuMetrics]]:
        """Return the bytes that the agent and its engine have in memory, and the GPUs."""
        rss = _rss(psutil.Process())
        if engine_pid is not None:
            try:
                engine = psutil.Process(engine_pid)
                rss += sum(_rss(one) for one in (engine, *engine.children(recursive=True)))
            except psutil.Error:
                pass  # it ends just now
        return rss, self._gpus.read()


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
