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

from batch_gpu_worker.admission import Admission
from batch_gpu_worker.effort import EffortMeter, EngineGpus, engine_gpus
from batch_gpu_worker.engine_monitor import EngineMonitor, rss, rss_with_children
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.gpu import GpuMeter
from batch_gpu_worker.holdings import Holdings
from batch_gpu_worker.online_load import OnlineLoad
from vllm_batch.clock import Clock
from vllm_batch.heartbeats import GpuMetrics, Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.log_stream import LogStream
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
        monitor: EngineMonitor,
        gpus: GpuMeter,
        effort: EffortMeter,
        online: OnlineLoad,
        logs: LogStream | None,
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
        self._monitor = monitor
        self._gpus = gpus
        self._effort = effort
        self._online = online
        self._logs = logs
        self._measured = (clock.monotonic(), 0, 0)

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await self.send()
            await asyncio.sleep(self._settings.heartbeat_seconds)

    async def send(self) -> None:
        """Send one now."""
        heartbeat = await self.now()
        if not self._client.is_connected:
            return  # an old heartbeat that arrives late would say nothing true
        try:
            await self._client.publish(
                subjects.heartbeat(self._worker_id), msgspec.json.encode(heartbeat)
            )
        except nats.errors.Error as error:
            log.debug("no heartbeat", error=repr(error))

    async def now(self) -> Heartbeat:
        """Return how the worker does at this moment."""
        admission = self._admission
        engine_pid = self._engine.pid
        own, engines, gpus = await asyncio.to_thread(self._read_machine, engine_pid)
        self._effort.observe(self._of_engine(gpus))
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
            in_flight_max=admission.in_flight_max,
            online_in_flight=self._online.in_flight,
            leases=len(self._holdings),
            requests_per_second=(admission.answered - answered) / seconds,
            output_tokens_per_second=(admission.output_tokens - tokens) / seconds,
            rss_bytes=own + engines,
            engine_rss_bytes=engines,
            engine_progress_age_seconds=round(self._monitor.progress_age_seconds, 3),
            engine_restarts=self._monitor.restarts,
            max_num_seqs=self._engine.max_num_seqs,
            log_errors=self._logs.errors if self._logs else 0,
            log_warnings=self._logs.warnings if self._logs else 0,
            gpus=gpus,
        )

    def _state(self) -> State:
        if self.phase == "ready" and not self._engine.ready.is_set():
            return "starting"  # its engine restarts
        return self.phase

    def _of_engine(self, gpus: list[GpuMetrics]) -> EngineGpus:
        chosen = self._engine.chosen
        settings = self._settings
        if settings.engine != "vllm" or settings.engine_variant == "cpu" or chosen is None:
            return EngineGpus()  # it is elsewhere, or uses none
        arguments = (*settings.engine_args, *chosen.base.engine_args)
        return engine_gpus(arguments, os.environ, gpus)

    def _read_machine(self, engine_pid: int | None) -> tuple[int, int, list[GpuMetrics]]:
        """Return the bytes that the agent and its engine have in memory, and the GPUs."""
        engines = rss_with_children(engine_pid) if engine_pid is not None else 0
        return rss(psutil.Process()), engines, self._gpus.read()
