"""Wires the worker's duties together, starts them, and ends them in the right order.

start ──► engine loads ──► ready: hints → leases → requests → results ──► drain ──► stopped
               └─────────── engine failed for good ──────────────────────► failed
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from importlib.metadata import version
from typing import Any

import structlog

from batch_gpu_worker.admission import Admission
from batch_gpu_worker.checkpoint import Checkpointer
from batch_gpu_worker.control import Control
from batch_gpu_worker.effort import EffortMeter
from batch_gpu_worker.emptying import run_empty
from batch_gpu_worker.engine_monitor import EngineMonitor
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.gpu import GpuMeter
from batch_gpu_worker.heartbeat import HeartbeatSender
from batch_gpu_worker.holdings import HeldChunk, Holdings
from batch_gpu_worker.intake import Intake
from batch_gpu_worker.job_endings import JobEndings
from batch_gpu_worker.lease import ReleaseReason
from batch_gpu_worker.lease_endings import LeaseEndings
from batch_gpu_worker.measuring import WorkerMeasuring, WorkerMeters
from batch_gpu_worker.model_folders import ModelFolders
from batch_gpu_worker.model_set import ModelSet
from batch_gpu_worker.online import OnlineDesk
from batch_gpu_worker.online_load import OnlineLoad
from batch_gpu_worker.presence import Presence
from batch_gpu_worker.request_run import RequestRunner, TimeLimit
from batch_gpu_worker.serving import Serving
from batch_gpu_worker.ward import Ward
from vllm_batch import ids, tasks
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import Clock
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.log_stream import LogStream
from vllm_batch.metrics.exposition import Exposition
from vllm_batch.notify import notify
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

DUTY_PAUSE_SECONDS = 1.0
HAND_IN_SECONDS = 10.0
"""At most this much of the drain notice is kept for handing in and for stopping the engine."""


class StopSignal:
    """Asked to end once: gracefully. Asked twice: as fast as nothing finished is lost."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = False
        self.start_anew = False

    def ask(self) -> None:
        """Ask the worker to end."""
        self.hurry = self.asked.is_set()
        self.asked.set()

    def ask_restart(self, *, now: bool) -> None:
        """Ask the worker to end and to start anew; ``now``: without waiting for what runs."""
        if self.asked.is_set() and not self.start_anew:
            return  # it ends for good: whoever asked for that means it
        self.start_anew = True
        self.hurry = self.hurry or now
        self.asked.set()


class Agent:
    """One worker process: one engine, one identity, any number of chunks."""

    def __init__(
        self,
        settings: Settings,
        store: JetStreamEventStore,
        blobs: BlobStore,
        engine: Engine,
        *,
        clock: Clock,
        worker_id: WorkerId,
        rng: random.Random,
        logs: LogStream | None = None,
        exposition: Exposition | None = None,
    ) -> None:
        self.worker_id = worker_id
        self._exposition = exposition or Exposition("gpu-worker")
        meters = WorkerMeters(self._exposition.registry)
        self._settings = settings
        self._store = store
        self._engine = engine
        self.holdings = Holdings()
        self._presence = Presence(store, worker_id)
        self._endings = JobEndings()
        self._checkpointer = Checkpointer(
            blobs, self.holdings, settings,
            on_durable=self._on_durable, on_lost=self._on_lost, metrics=meters.work,
        )  # fmt: skip
        self._time_limit = TimeLimit(settings.request_timeout_seconds, clock.monotonic)
        ward, gpus, load = Ward(engine), GpuMeter(), OnlineLoad()
        effort = EffortMeter(load, clock.monotonic)
        runner = RequestRunner(
            engine, settings, self._time_limit, rng, ward, effort=effort, metrics=meters.work
        )
        self.admission = Admission(self.holdings, runner, self._checkpointer, settings)
        self.monitor = EngineMonitor(
            engine, self.admission, ward, settings,
            worker_id=worker_id, clock=clock, gpus=gpus, online=load, record=self._presence.note,
            metrics=meters.engine,
        )  # fmt: skip
        self._measuring = self._new_measuring(meters, load, gpus)
        engine.on_death = self.monitor.note_death
        self._intake = Intake(
            store, store.js, blobs, self.holdings, self.admission,
            settings=settings, worker_id=worker_id, ending_of=self._endings.of,
            check_lease=self._checkpointer.check_lease,
        )  # fmt: skip
        self._heartbeats = HeartbeatSender(
            store.connection.client, settings, worker_id=worker_id, engine=engine,
            admission=self.admission, holdings=self.holdings, clock=clock,
            monitor=self.monitor, gpus=gpus, effort=effort, online=load, logs=logs,
        )  # fmt: skip
        self._online = self._new_online_desk(ward, load, meters)
        serving = Serving(
            self._intake, self.admission, self.holdings, self._presence, self._heartbeats,
            online=self._online, settings=settings,
        )  # fmt: skip
        self.models = ModelSet(
            engine, self.monitor, serving, ModelFolders(blobs, settings.home), store,
            worker_id=worker_id, worker_name=settings.worker_name, monotonic=clock.monotonic,
        )  # fmt: skip
        self._control = Control(
            engine, self.monitor, gpus, self._heartbeats, self.models,
            worker_id=worker_id, name=settings.worker_name, record=self._presence.note,
        )  # fmt: skip
        self._duties: list[asyncio.Task[None]] = []
        self._losses: set[asyncio.Task[None]] = set()

    def _new_online_desk(self, ward: Ward, load: OnlineLoad, meters: WorkerMeters) -> OnlineDesk:
        def searching_or_emptying() -> bool:
            blaming = ward.quarantine.active or (ward.closed and self.admission.in_flight > 0)
            return blaming or self.monitor.emptying

        return OnlineDesk(
            self._store.connection.client, self._engine, self._settings,
            worker_id=self.worker_id, load=load, withheld=searching_or_emptying,
            metrics=meters.work,
        )  # fmt: skip

    def _new_measuring(
        self, meters: WorkerMeters, load: OnlineLoad, gpus: GpuMeter
    ) -> WorkerMeasuring:
        return WorkerMeasuring(
            meters, store=self._store, engine=self._engine, monitor=self.monitor,
            admission=self.admission, checkpointer=self._checkpointer, holdings=self.holdings,
            online=load, gpus=gpus,
        )  # fmt: skip

    async def run(self, stop: StopSignal) -> int:
        """Work until asked to stop; return the process's exit status (1: the engine failed)."""
        self._endings.on_end = self._on_job_end
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._engine.stop)
            stack.push_async_callback(self._end_duties)
            stack.enter_context(self._exposition.on_scrape(self._measuring.refresh))
            await self._announce()
            client = self._store.connection.client
            await stack.enter_async_context(self._control.listening(client, stop.ask_restart))
            await self.models.prepare()
            await self._engine.start()
            self._begin("heartbeat", self._heartbeats.run)
            self._begin("engine events", self.monitor.announce)
            failure = asyncio.create_task(self._wait_failed())
            asked = asyncio.create_task(stop.asked.wait())
            working = asyncio.create_task(self._work(stack))
            try:
                await asyncio.wait({failure, asked, working}, return_when="FIRST_COMPLETED")
                if working.done():
                    working.result()  # it never returns: raise what went wrong
                await _end_tasks(working)
                if not failure.done():
                    await self._drain("drained", self._settings.drain_notice_seconds, stop)
                    return 0
                log.error("the engine failed", error=str(failure.exception()))
                await self._fail(stop)
                return 1
            finally:
                await _end_tasks(failure, asked, working)

    async def _wait_failed(self) -> None:
        """Wait until the engine cannot be started, or dies whatever it is given."""
        waits = [
            asyncio.create_task(self._engine.wait_failed()),
            asyncio.create_task(self.monitor.wait_given_up()),
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when="FIRST_COMPLETED")
            for wait in done:
                wait.result()
        finally:
            await _end_tasks(*waits)

    async def _announce(self) -> None:
        notify(STATUS=f"loading the engine {self._settings.engine}")
        await self._presence.started(
            name=self._settings.worker_name,
            host=socket.gethostname(),
            pid=os.getpid(),
            engine=self._settings.engine,
            version=version("vllm-batch"),
        )

    async def _work(self, stack: AsyncExitStack) -> None:
        """Once the engine is ready, take work for ever."""
        await self._engine.ready.wait()
        client = self._store.connection.client
        await stack.enter_async_context(self._endings.listening(client))
        lease_endings = LeaseEndings(self.holdings, self._checkpointer.check_lease)
        await stack.enter_async_context(lease_endings.listening(client))
        await stack.enter_async_context(self._online.listening())
        self._begin("online", self._online.run)
        self._begin("checkpoint", self._checkpointer.run)
        self._begin("time limit", self._look_at_time)
        self._begin("engine monitor", self.monitor.run)
        self._heartbeats.phase = "ready"
        await self.models.begin()
        await tasks.first_to_end(
            _duty("intake", self._intake.run), _duty("models", self.models.run)
        )

    async def _look_at_time(self) -> None:
        while True:
            await asyncio.sleep(self._time_limit.look_every_seconds)
            self._time_limit.look()

    async def _drain(self, reason: ReleaseReason, notice_seconds: float, stop: StopSignal) -> None:
        """Let what runs finish, as long as there is time; hand in, give back, say goodbye."""
        log.info("draining", in_flight=self.admission.in_flight, seconds=notice_seconds)
        if stop.start_anew:
            notify(STATUS="draining, to start anew")  # the process stays
        else:
            notify(STOPPING=1, STATUS="draining")
        self._heartbeats.phase = "failed" if reason == "engine_failed" else "draining"
        end = asyncio.get_running_loop().time() + notice_seconds
        finish = end - min(HAND_IN_SECONDS, notice_seconds / 3)
        try:
            async with asyncio.timeout_at(end):
                await asyncio.gather(
                    self._online.finish(until=finish, hurried=lambda: stop.hurry),
                    run_empty(
                        self._intake, self.admission, self.holdings, reason,
                        finish=finish, hurried=lambda: stop.hurry,
                    ),
                )  # fmt: skip
                await self._presence.stopped(reason)
                await self.models.end("worker_stopped" if reason == "drained" else "engine_failed")
        except TimeoutError:
            log.error("ending without having handed in everything", chunks=len(self.holdings))
        log.info("drained")

    async def _fail(self, stop: StopSignal) -> None:
        stop.hurry = True
        await self._drain("engine_failed", HAND_IN_SECONDS, stop)
        await self._heartbeats.send()

    def _begin(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._duties.append(asyncio.create_task(_duty(name, run), name=name))

    async def _end_duties(self) -> None:
        for chunk in self.holdings:
            self.admission.abort(chunk)
        await _end_tasks(*self._duties, *self._losses)

    def _on_durable(self) -> None:
        self.admission.pump()

    def _on_lost(self, chunk: HeldChunk) -> None:
        self.admission.abort(chunk)
        resume = ExitStack()
        resume.enter_context(self.admission.paused())
        task = asyncio.create_task(self._after_loss(resume))
        self._losses.add(task)
        task.add_done_callback(self._losses.discard)

    async def _after_loss(self, resume: ExitStack) -> None:
        """A worker that loses one lease was probably away, and may have lost them all."""
        with resume:
            await self._checkpointer.check_leases()
        await self._presence.deny_loss()

    def _on_job_end(self, job_id: JobId, reason: ReleaseReason) -> None:
        for chunk in self.holdings.of_job(job_id):
            self.admission.end(chunk, reason)


async def _end_tasks(*ended: asyncio.Future[Any]) -> None:
    """End tasks; what they raised is of no interest now."""
    await tasks.end(*ended)
    await asyncio.gather(*ended, return_exceptions=True)


async def _duty(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a duty for ever: what goes wrong in it unforeseen is logged, and it begins anew."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("duty failed", duty=name)
        await asyncio.sleep(DUTY_PAUSE_SECONDS)


def new_worker_id() -> WorkerId:
    """Return a fresh worker id: one per process."""
    return WorkerId(ids.new("worker_"))
