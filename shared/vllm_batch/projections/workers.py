"""Read models ``worker`` (every process that ever worked) and ``model`` (what they served)."""

from __future__ import annotations

import msgspec

from vllm_batch.errors import ProjectionError
from vllm_batch.events import (
    Event,
    Recorded,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorkerStopped,
)
from vllm_batch.projections.rows import AnnouncedModelRow, WorkerRow
from vllm_batch.projections.table import Key, Table


def evolve(row: WorkerRow | None, recorded: Recorded) -> WorkerRow:
    """Return the worker's row after ``recorded``.

    Raises:
        ProjectionError: the log has this event but no start before it.
    """
    event = recorded.event
    now = int(recorded.time.timestamp())
    if isinstance(event, WorkerStarted):
        return WorkerRow(
            seq=recorded.seq,
            worker_id=event.worker_id,
            name=event.name,
            host=event.host,
            pid=event.pid,
            engine=event.engine,
            version=event.version,
            status="started",
            models=[],
            in_flight_max=0,
            started_at=now,
        )
    if row is None:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) belongs to no known worker")
    replace = msgspec.structs.replace
    match event:
        case WorkerReady(models=models, in_flight_max=in_flight_max):
            # It may have been taken for lost while it was frozen or cut off.
            back: dict[str, object] = {"status": "ready", "ended_at": None, "reason": None}
            return replace(row, models=models, in_flight_max=in_flight_max, **back)
        case WorkerStopped(reason=reason):
            return replace(row, status="stopped", ended_at=max(now, row.started_at), reason=reason)
        case WorkerLost(reason=reason):
            return replace(row, status="lost", ended_at=max(now, row.started_at), reason=reason)
    raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is none of a worker's")


def evolve_model(row: AnnouncedModelRow | None, recorded: Recorded, key: Key) -> AnnouncedModelRow:
    """Return the model's row: the first worker that served it made it known."""
    return row or AnnouncedModelRow(name=str(key[0]), created_at=int(recorded.time.timestamp()))


def _worker_keys(event: Event) -> list[Key]:
    return [event.aggregate_id()]


def _model_keys(event: Event) -> list[Key]:
    return [(name,) for name in event.models] if isinstance(event, WorkerReady) else []


TABLE = Table(
    name="worker",
    row=WorkerRow,
    key=("worker_id",),
    events=(WorkerStarted, WorkerReady, WorkerStopped, WorkerLost),
    first=WorkerStarted,
    keys=_worker_keys,
    evolve=lambda row, recorded, _key: evolve(row, recorded),
)

MODEL_TABLE = Table(
    name="model",
    row=AnnouncedModelRow,
    key=("name",),
    events=(WorkerReady,),
    first=None,
    keys=_model_keys,
    evolve=evolve_model,
)
