"""What has to be done next for a job, from its state on the board alone. Pure.

Nothing else decides it, so a job that a crash left in any state is picked up by looking at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from batch_gateway.orchestrator.board import JobView
from vllm_batch.aggregates.job import JobStatus


@dataclass(frozen=True, slots=True)
class Plan:
    """Validate the file and put its chunks on record."""


@dataclass(frozen=True, slots=True)
class CloseChunks:
    """End these chunks as they are."""

    numbers: tuple[int, ...]
    reason: Literal["cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class Finalize:
    """Every chunk is terminal: say so."""


@dataclass(frozen=True, slots=True)
class WriteFiles:
    """Write the output and error files and end the job."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before something changes, or before ``until`` in monotonic seconds."""

    until: float | None = None


Step = Plan | CloseChunks | Finalize | WriteFiles | Wait


def next_step(view: JobView, now: float, cancel_grace_seconds: float) -> Step:
    """Return the next step; ``now`` in monotonic seconds."""
    status = view.job.status
    match status:
        case JobStatus.VALIDATING:
            return Plan()
        case JobStatus.RUNNING:
            return _running(view)
        case JobStatus.CANCELLING:
            return _ending(view, now, cancel_grace_seconds, "cancelled")
        case JobStatus.EXPIRING:
            return _ending(view, now, cancel_grace_seconds, "expired")
        case JobStatus.FINALIZING:
            return WriteFiles()
        case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.EXPIRED | JobStatus.CANCELLED:
            return Wait()
    assert_never(status)


def _running(view: JobView) -> Step:
    started = view.job.started
    if started is None or view.ready or view.leased or len(view.chunks) < started.chunks:
        return Wait()
    return Finalize()


def _ending(
    view: JobView,
    now: float,
    cancel_grace_seconds: float,
    reason: Literal["cancelled", "expired"],
) -> Step:
    """Ready chunks are closed at once; leased ones when released, or after the grace."""
    if view.ready:
        return CloseChunks(tuple(sorted(view.ready)), reason)
    if not view.leased:
        return Finalize()
    until = (view.ending_since or now) + cancel_grace_seconds
    if now < until:
        return Wait(until)
    return CloseChunks(tuple(sorted(view.leased)), reason)
