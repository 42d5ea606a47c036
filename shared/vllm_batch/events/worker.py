"""Events of a worker's life. One ``worker_id`` per process; ``name`` survives restarts."""

from __future__ import annotations

from typing import ClassVar, Literal

from vllm_batch.events.base import Event
from vllm_batch.ids import WorkerId

RestartReason = Literal["crashed", "frozen", "out_of_memory", "memory_limit", "requested", "killed"]


class _WorkerEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("worker_id",)

    worker_id: WorkerId


class WorkerStarted(_WorkerEvent, frozen=True, kw_only=True):
    """The agent runs; its engine may still be loading. Older processes of ``name`` are gone."""

    TYPE: ClassVar[str] = "worker.started"

    name: str
    host: str
    pid: int
    engine: str
    version: str


class WorkerReady(_WorkerEvent, frozen=True, kw_only=True):
    """The engine serves ``models`` and takes ``in_flight_max`` requests at once."""

    TYPE: ClassVar[str] = "worker.ready"

    models: list[str]
    in_flight_max: int


class WorkerStopped(_WorkerEvent, frozen=True, kw_only=True):
    """The agent ended on purpose; it holds no lease."""

    TYPE: ClassVar[str] = "worker.stopped"

    reason: str


class WorkerLost(_WorkerEvent, frozen=True, kw_only=True):
    """Nothing was heard of the worker for too long; its leases are released."""

    TYPE: ClassVar[str] = "worker.lost"

    reason: Literal["silent", "replaced"]


class WorkerRestartRequested(_WorkerEvent, frozen=True, kw_only=True):
    """Somebody asked the worker to start anew: at once (``now``) or after what runs is finished."""

    TYPE: ClassVar[str] = "worker.restart_requested"

    requested_by: str
    now: bool = False


class WorkerGpuCleared(_WorkerEvent, frozen=True, kw_only=True):
    """The engine was stopped and what it had left on the GPUs was killed.

    The memory is that of all GPUs together, as NVML gives it; None where there is no GPU.
    """

    TYPE: ClassVar[str] = "worker.gpu_cleared"

    requested_by: str
    memory_used_bytes_before: int | None = None
    memory_used_bytes_after: int | None = None
    killed_pids: tuple[int, ...] = ()


class WorkerEngineKilled(_WorkerEvent, frozen=True, kw_only=True):
    """Somebody had the engine's processes killed; the worker starts them anew."""

    TYPE: ClassVar[str] = "worker.engine_killed"

    requested_by: str


class WorkerEngineRestarted(_WorkerEvent, frozen=True, kw_only=True):
    """The engine ended before its worker did; it now starts with ``max_num_seqs``."""

    TYPE: ClassVar[str] = "worker.engine_restarted"

    reason: RestartReason
    detail: str
    max_num_seqs: int


class WorkerCrashLooping(_WorkerEvent, frozen=True, kw_only=True):
    """It was started ``restarts`` times within ``window_seconds`` and is left alone from now on."""

    TYPE: ClassVar[str] = "worker.crash_looping"

    restarts: int
    window_seconds: float


class WorkerCleared(_WorkerEvent, frozen=True, kw_only=True):
    """A person takes the crash loop for mended: it may be started again."""

    TYPE: ClassVar[str] = "worker.cleared"

    requested_by: str


WorkerEvent = (
    WorkerStarted
    | WorkerReady
    | WorkerStopped
    | WorkerLost
    | WorkerRestartRequested
    | WorkerGpuCleared
    | WorkerEngineKilled
    | WorkerEngineRestarted
    | WorkerCrashLooping
    | WorkerCleared
)
