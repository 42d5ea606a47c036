"""Events of a worker's life. One ``worker_id`` per process; ``name`` survives restarts."""

from __future__ import annotations

from typing import ClassVar, Literal

from vllm_batch.events.base import Event
from vllm_batch.ids import WorkerId


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


WorkerEvent = WorkerStarted | WorkerReady | WorkerStopped | WorkerLost
