"""Read model ``chunk``: progress. Its rows add up to the counts of a running batch."""

from __future__ import annotations

from typing import Any

import msgspec

from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.errors import ProjectionError
from vllm_batch.events import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    ChunkReleased,
    Effort,
    Event,
    Recorded,
    Usage,
)
from vllm_batch.projections.rows import ChunkRow
from vllm_batch.projections.table import Key, Table


def evolve(row: ChunkRow | None, recorded: Recorded) -> ChunkRow:
    """Return the row after ``recorded``.

    Raises:
        ProjectionError: the log has this event but no planning before it.
    """
    event = recorded.event
    if isinstance(event, ChunkPlanned):
        return ChunkRow(
            job_id=event.job_id,
            chunk=event.chunk,
            status=ChunkStatus.READY,
            model=event.model,
            count=event.count,
        )
    if row is None:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) belongs to no known chunk")
    match event:
        case ChunkLeased():
            return _changed(row, ChunkStatus.LEASED, epoch=event.epoch, worker_id=event.worker_id)
        case ChunkProgressed():
            return _counted(row, ChunkStatus.LEASED, event, recorded)
        case ChunkCompleted():
            return _counted(row, ChunkStatus.COMPLETED, event, recorded)
        case ChunkReleased():
            return _released(row, event, recorded)
        case ChunkClosed():
            failed = row.count - row.completed if event.reason == "stuck" else row.failed
            return _changed(row, ChunkStatus.CLOSED, failed=failed)
    raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is none of a chunk's")


def _counted(
    row: ChunkRow,
    status: ChunkStatus,
    event: ChunkProgressed | ChunkCompleted,
    recorded: Recorded,
) -> ChunkRow:
    usage: Usage = event.usage
    effort: Effort = event.effort
    return ChunkRow(
        job_id=row.job_id,
        chunk=row.chunk,
        status=status,
        model=row.model,
        count=row.count,
        epoch=row.epoch,
        worker_id=row.worker_id,
        completed=event.completed,
        failed=event.failed,
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        used_at=int(recorded.time.timestamp()),
        engine_seconds=effort.engine_seconds,
        gpu_seconds=effort.gpu_seconds,
        energy_joules=effort.energy_joules,
    )


def _released(row: ChunkRow, event: ChunkReleased, recorded: Recorded) -> ChunkRow:
    changed = _changed(row, ChunkStatus.READY)
    if event.effort is None:
        return changed
    return msgspec.structs.replace(
        changed,
        used_at=int(recorded.time.timestamp()),
        engine_seconds=event.effort.engine_seconds,
        gpu_seconds=event.effort.gpu_seconds,
        energy_joules=event.effort.energy_joules,
    )


def _changed(row: ChunkRow, status: ChunkStatus, **changes: Any) -> ChunkRow:
    # Spelled out rather than structs.replace: chunks are nearly all there is in a log.
    return ChunkRow(
        job_id=row.job_id,
        chunk=row.chunk,
        status=status,
        model=row.model,
        count=row.count,
        epoch=changes.get("epoch", row.epoch),
        worker_id=changes.get("worker_id", row.worker_id),
        completed=row.completed,
        failed=changes.get("failed", row.failed),
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        reasoning_tokens=row.reasoning_tokens,
        used_at=row.used_at,
        engine_seconds=row.engine_seconds,
        gpu_seconds=row.gpu_seconds,
        energy_joules=row.energy_joules,
    )


def number(event: Event) -> int:
    """Return which chunk of its job a chunk's event is about."""
    return int(event.aggregate_id()[1])


def _keys(event: Event) -> list[Key]:
    return [(event.job_id, event.chunk)]  # type: ignore[attr-defined]


TABLE = Table(
    name="chunk",
    row=ChunkRow,
    key=("job_id", "chunk"),
    events=(
        ChunkPlanned, ChunkLeased, ChunkProgressed, ChunkCompleted, ChunkReleased, ChunkClosed,
    ),
    first=ChunkPlanned,
    keys=_keys,
    evolve=lambda row, recorded, _key: evolve(row, recorded),
)  # fmt: skip
