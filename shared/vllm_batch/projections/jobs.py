"""Read model ``job``: what clients see of a batch. One row per job, folded from the job's own
events.

Counts while a job runs are not kept here: they are the sums over its chunks' rows.
"""

from __future__ import annotations

import msgspec

from vllm_batch.aggregates.job import JobStatus
from vllm_batch.errors import ProjectionError
from vllm_batch.events import (
    Event,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobFinalizing,
    JobRetired,
    JobStarted,
    JobStuck,
    JobSubmitted,
    JobWindowClosed,
    Recorded,
)
from vllm_batch.projections.rows import BatchRow
from vllm_batch.projections.table import Key, Table

_STATUSES: dict[type[Event], JobStatus] = {
    JobStarted: JobStatus.RUNNING,
    JobFailed: JobStatus.FAILED,
    JobCancelRequested: JobStatus.CANCELLING,
    JobWindowClosed: JobStatus.EXPIRING,
    JobFinalizing: JobStatus.FINALIZING,
    JobCompleted: JobStatus.COMPLETED,
    JobExpired: JobStatus.EXPIRED,
    JobCancelled: JobStatus.CANCELLED,
}
_STAMPS: dict[type[Event], str] = {
    JobStarted: "in_progress_at",
    JobFailed: "failed_at",
    JobCancelRequested: "cancelling_at",
    JobFinalizing: "finalizing_at",
    JobCompleted: "completed_at",
    JobExpired: "expired_at",
    JobCancelled: "cancelled_at",
}


def evolve(row: BatchRow | None, recorded: Recorded) -> BatchRow:
    """Return the row after ``recorded``.

    Raises:
        ProjectionError: the log has this event but no submission before it.
    """
    event = recorded.event
    if isinstance(event, JobSubmitted):
        return _submitted(event, recorded)
    if row is None:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) belongs to no known job")
    if isinstance(event, JobStuck):
        return row
    if isinstance(event, JobRetired):
        return msgspec.structs.replace(row, retired_at=int(recorded.time.timestamp()))
    changes: dict[str, object] = {"status": _STATUSES[type(event)]}
    if stamp := _STAMPS.get(type(event)):
        changes[stamp] = max(int(recorded.time.timestamp()), _latest(row))
    match event:
        case JobStarted():
            changes |= {"total": event.total, "model": event.model}
        case JobFailed():
            changes["errors"] = event.errors
        case JobCompleted() | JobExpired() | JobCancelled():
            changes |= {
                name: getattr(event, name)
                for name in (
                    "total", "completed", "failed", "usage", "output_file_id", "error_file_id",
                )
            }  # fmt: skip
    return msgspec.structs.replace(row, **changes)


def _submitted(event: JobSubmitted, recorded: Recorded) -> BatchRow:
    return BatchRow(
        seq=recorded.seq,
        job_id=event.job_id,
        project=event.project,
        status=JobStatus.VALIDATING,
        endpoint=event.endpoint,
        input_file_id=event.input_file_id,
        completion_window=event.completion_window,
        created_at=int(recorded.time.timestamp()),
        expires_at=event.expires_at,
        metadata=event.metadata,
        key_id=event.key_id,
    )


def _latest(row: BatchRow) -> int:
    """Return the last time on the row: a stepping clock must not reorder a batch's timestamps."""
    stamps: list[int | None] = [getattr(row, name) for name in _STAMPS.values()]
    return max(stamp for stamp in (row.created_at, *stamps) if stamp is not None)


def _keys(event: Event) -> list[Key]:
    return [event.aggregate_id()]


TABLE = Table(
    name="job",
    row=BatchRow,
    key=("job_id",),
    events=(JobSubmitted, *_STATUSES, JobRetired),
    first=JobSubmitted,
    keys=_keys,
    evolve=lambda row, recorded, _key: evolve(row, recorded),
)
