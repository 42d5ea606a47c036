"""What the worker looks at when Prometheus asks: its engine, its GPUs, what it holds."""

from __future__ import annotations

import asyncio
import math

from prometheus_client import CollectorRegistry

from batch_gpu_worker.admission import Admission
from batch_gpu_worker.checkpoint import Checkpointer
from batch_gpu_worker.engine_monitor import EngineMonitor, rss_with_children
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.gpu import GpuMeter
from batch_gpu_worker.holdings import Holdings
from batch_gpu_worker.online_load import OnlineLoad
from vllm_batch.errors import EngineUnavailable
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.heartbeats import GpuMetrics
from vllm_batch.metrics.worker import EngineMetrics, GpuDeviceMetrics, WorkerMetrics

ENGINE_SECONDS = 1.0


class WorkerMeters:
    """All metrics of a worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.work = WorkerMetrics(registry)
        self.engine = EngineMetrics(registry)
        self.gpus = GpuDeviceMetrics(registry)


class WorkerMeasuring:
    """See `exposition.Exposition.on_scrape`."""

    def __init__(
        self,
        meters: WorkerMeters,
        *,
        store: JetStreamEventStore,
        engine: Engine,
        monitor: EngineMonitor,
        admission: Admission,
        checkpointer: Checkpointer,
        holdings: Holdings,
        online: OnlineLoad,
        gpus: GpuMeter,
    ) -> None:
        self._meters = meters
        self._store = store
        self._engine = engine
        self._monitor = monitor
        self._admission = admission
        self._checkpointer = checkpointer
        self._holdings = holdings
        self._online = online
        self._gpus = gpus
        self._gpu_measuring = GpuMeasuring(meters.gpus)

    async def refresh(self) -> None:
        """Bring the gauges up to date."""
        self._store.measure_connection()
        work = self._meters.work
        work.state.labels("batch").set(self._admission.in_flight)
        work.state.labels("online").set(self._online.in_flight)
        work.in_flight_max.set(self._admission.in_flight_max)
        work.waiting.set(self._holdings.waiting)
        work.chunks.set(len(self._holdings))
        work.undurable.set(self._checkpointer.undurable)
        await self._measure_engine()
        self._gpu_measuring.set(await asyncio.to_thread(self._gpus.read))

    async def _measure_engine(self) -> None:
        engine, metrics = self._engine, self._meters.engine
        metrics.ready.set(engine.ready.is_set())
        metrics.progress_age.set(self._monitor.progress_age_seconds)
        metrics.sequences_max.set(engine.max_num_seqs)
        if (pid := engine.pid) is not None:
            metrics.resident.set(await asyncio.to_thread(rss_with_children, pid))
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                load = await engine.load()
        except (EngineUnavailable, TimeoutError):
            load = None
        metrics.requests.labels("running").set(load.running if load else math.nan)
        metrics.requests.labels("waiting").set(load.waiting if load else math.nan)
        metrics.kv_cache.set(load.kv_cache_usage if load else math.nan)


class GpuMeasuring:
    """Sets what NVML says. Energy counts from when it first looked: the driver's count began with
    the driver."""

    def __init__(self, metrics: GpuDeviceMetrics) -> None:
        self._metrics = metrics
        self._energy: dict[int, float] = {}

    def set(self, gpus: list[GpuMetrics]) -> None:
        """Bring the gauges up to date; what a GPU does not say stays out."""
        metrics = self._metrics
        for gpu in gpus:
            labels = (str(gpu.index), gpu.name)
            used = gpu.utilization_percent
            for gauge, value in (
                (metrics.memory_used, gpu.memory_used_bytes),
                (metrics.memory_size, gpu.memory_total_bytes),
                (metrics.temperature, gpu.temperature_celsius),
                (metrics.power, gpu.power_watts),
                (metrics.utilization, None if used is None else used / 100),
            ):
                if value is not None:
                    gauge.labels(*labels).set(value)
            if gpu.energy_joules is not None:
                before = self._energy.get(gpu.index, gpu.energy_joules)
                self._energy[gpu.index] = gpu.energy_joules
                metrics.energy.labels(*labels).inc(max(0.0, gpu.energy_joules - before))
