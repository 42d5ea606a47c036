"""The rules of a job.

    (none) ──submit──► VALIDATING ──start──► RUNNING ──finalize──► FINALIZING ──finish──► COMPLETED
                          │ │ │                │ │                 (outcome)    ├───────► EXPIRED
                          │ │ └─fail─► FAILED  │ └─close window─► EXPIRING ─►┤  └───────► CANCELLED
                          │ └───────cancel─────┴───cancel───────► CANCELLING ─►┘ (both by finalize)
                          └─close window─► EXPIRING

A cancel in EXPIRING or FINALIZING comes too late and is refused, as is the window's end in
CANCELLING. Being stuck is noted in any status before the end, and changes none. COMPLETED, EXPIRED,
CANCELLED and FAILED never change again; in them a job is retired once.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from vllm_batch.errors import AlreadyDone, Rejected
from vllm_batch.events.base import Event, Usage
from vllm_batch.events.envelope import Recorded
from vllm_batch.events.job import (
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
    LineError,
    Outcome,
    StuckReason,
)
from vllm_batch.ids import FileId, JobId


class JobStatus(StrEnum):
    """Where a job is; EXPIRING shows as ``in_progress`` to clients."""

    VALIDATING = "validating"
    RUNNING = "running"
    CANCELLING = "cancelling"
    EXPIRING = "expiring"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


TERMINAL = frozenset(
    {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.EXPIRED, JobStatus.CANCELLED}
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """State of a job, folded from its events. ``times`` has when each status was entered (UTC)."""

    submitted: JobSubmitted
    status: JobStatus
    times: dict[JobStatus, datetime]
    started: JobStarted | None = None
    outcome: Outcome | None = None
    failed: JobFailed | None = None
    ended: JobCompleted | JobExpired | JobCancelled | None = None
    retired: bool = False

    @property
    def job_id(self) -> JobId:
        """The job's id."""
        return self.submitted.job_id

    @property
    def terminal(self) -> bool:
        """Whether nothing can change any more."""
        return self.status in TERMINAL


class Submit(msgspec.Struct, frozen=True):
    """Accept a batch."""

    event: JobSubmitted


class Start(msgspec.Struct, frozen=True):
    """The file is planned: work may begin."""

    total: int
    chunks: int
    model: str


class Fail(msgspec.Struct, frozen=True):
    """The file is invalid."""

    errors: list[LineError]
    error_count: int


class Cancel(msgspec.Struct, frozen=True):
    """The user gives the job up."""


class CloseWindow(msgspec.Struct, frozen=True):
    """The completion window has passed."""


class Finalize(msgspec.Struct, frozen=True):
    """All chunks are terminal: the files may be written."""


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The files are written."""

    total: int
    completed: int
    failed: int
    usage: Usage
    output_file_id: FileId | None
    error_file_id: FileId | None


class NoteStuck(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing has happened for too long."""

    reason: StuckReason
    detail: str
    idle_seconds: int
    chunks: list[int]


class Retire(msgspec.Struct, frozen=True):
    """Its results are deleted."""


Command = Submit | Start | Fail | Cancel | CloseWindow | Finalize | Finish | NoteStuck | Retire

_ENDINGS: dict[Outcome, type[JobCompleted | JobExpired | JobCancelled]] = {
    "completed": JobCompleted,
    "expired": JobExpired,
    "cancelled": JobCancelled,
}
_OUTCOMES: dict[JobStatus, Outcome] = {
    JobStatus.RUNNING: "completed",
    JobStatus.CANCELLING: "cancelled",
    JobStatus.EXPIRING: "expired",
}
_OPEN = frozenset({JobStatus.VALIDATING, JobStatus.RUNNING})
# Command: the statuses in which it is already done, and those in which it is allowed.
_EDGES: dict[type, tuple[frozenset[JobStatus], frozenset[JobStatus]]] = {
    Start: (frozenset(), frozenset({JobStatus.VALIDATING})),
    Fail: (frozenset({JobStatus.FAILED}), frozenset({JobStatus.VALIDATING})),
    Cancel: (frozenset({JobStatus.CANCELLING, JobStatus.CANCELLED}), _OPEN),
    CloseWindow: (frozenset({JobStatus.EXPIRING, JobStatus.EXPIRED}), _OPEN),
    Finalize: (frozenset({JobStatus.FINALIZING}), frozenset(_OUTCOMES)),
}
_ENTERED = {
    JobStarted: JobStatus.RUNNING,
    JobFailed: JobStatus.FAILED,
    JobCancelRequested: JobStatus.CANCELLING,
    JobWindowClosed: JobStatus.EXPIRING,
    JobFinalizing: JobStatus.FINALIZING,
    JobCompleted: JobStatus.COMPLETED,
    JobExpired: JobStatus.EXPIRED,
    JobCancelled: JobStatus.CANCELLED,
}


def mixes_models(submitted: JobSubmitted) -> bool:
    """Tell whether requests of the batch may be for different models."""
    return (submitted.metadata or {}).get("allow_mixed_models") == "true"


def evolve(state: Job | None, recorded: Recorded) -> Job:
    """Return the state after ``recorded``.

    Raises:
        Rejected: the event is not one of a job's, or has no job before it.
    """
    event, time = recorded.event, recorded.time
    if isinstance(event, JobSubmitted):
        status = JobStatus.VALIDATING
        return Job(submitted=event, status=status, times={status: time})
    if isinstance(event, JobStuck) and state is not None:
        return state
    if isinstance(event, JobRetired) and state is not None:
        return msgspec.structs.replace(state, retired=True)
    entered = _ENTERED.get(type(event))
    if state is None or entered is None:
        raise Rejected(
            f"{event.TYPE} cannot be applied to {'no job' if state is None else 'a job'}"
        )
    # A stepping clock must not reorder the timestamps of a batch.
    latest = max((time, *state.times.values()))
    changes: dict[str, object] = {"status": entered, "times": {**state.times, entered: latest}}
    match event:
        case JobStarted():
            changes["started"] = event
        case JobFailed():
            changes["failed"] = event
        case JobFinalizing():
            changes["outcome"] = event.outcome
        case JobCompleted() | JobExpired() | JobCancelled():
            changes["ended"] = event
    return msgspec.structs.replace(state, **changes)


def decide(state: Job | None, command: Command) -> Event:
    """Return the event that ``command`` leads to.

    Raises:
        AlreadyDone: the job is already where the command leads.
        Rejected: the command is not allowed in this state.
    """
    if isinstance(command, Submit):
        if state is not None:
            raise AlreadyDone(f"job {state.job_id} is already submitted")
        return command.event
    if state is None:
        raise Rejected("there is no such job")
    if isinstance(command, Finish):
        return _finish(state, command)
    if isinstance(command, NoteStuck):
        return _note_stuck(state, command)
    if isinstance(command, Retire):
        return _retire(state)
    return _advance(state, command)


def _advance(state: Job, command: Start | Fail | Cancel | CloseWindow | Finalize) -> Event:
    already, allowed = _EDGES[type(command)]
    job_id, status = state.job_id, state.status
    if status in already or (isinstance(command, Start) and state.started is not None):
        raise AlreadyDone(f"job {job_id} is already {status}")
    if isinstance(command, Cancel) and state.outcome == "cancelled":
        raise AlreadyDone(f"job {job_id} is already cancelled")
    if status not in allowed:
        raise Rejected(f"job {job_id} is {status}: {type(command).__name__} is not possible")
    match command:
        case Start(total, chunks, model):
            return JobStarted(job_id=job_id, total=total, chunks=chunks, model=model)
        case Fail(errors, error_count):
            return JobFailed(job_id=job_id, errors=errors, error_count=error_count)
        case Cancel():
            return JobCancelRequested(job_id=job_id)
        case CloseWindow():
            return JobWindowClosed(job_id=job_id)
        case Finalize():
            return JobFinalizing(job_id=job_id, outcome=_OUTCOMES[status])


def _note_stuck(state: Job, command: NoteStuck) -> Event:
    if state.terminal:
        raise AlreadyDone(f"job {state.job_id} is already {state.status}")
    return JobStuck(job_id=state.job_id, **msgspec.structs.asdict(command))


def _retire(state: Job) -> Event:
    if state.retired:
        raise AlreadyDone(f"job {state.job_id} is already retired")
    if not state.terminal:
        raise Rejected(f"job {state.job_id} is {state.status}: it has not ended")
    return JobRetired(job_id=state.job_id)


def _finish(state: Job, command: Finish) -> Event:
    if state.ended is not None:
        raise AlreadyDone(f"job {state.job_id} has already ended")
    if state.status is not JobStatus.FINALIZING or state.outcome is None:
        raise Rejected(f"job {state.job_id} is {state.status}: Finish is not possible")
    if command.total != (state.started.total if state.started else 0):
        raise Rejected(f"job {state.job_id} was not planned with {command.total} requests")
    if command.completed + command.failed > command.total or (
        state.outcome == "completed" and command.completed + command.failed != command.total
    ):
        raise Rejected(
            f"job {state.job_id}: {command.completed} completed + {command.failed} failed "
            f"do not add up to {command.total}"
        )
    return _ENDINGS[state.outcome](
        job_id=state.job_id,
        total=command.total,
        completed=command.completed,
        failed=command.failed,
        usage=command.usage,
        output_file_id=command.output_file_id,
        error_file_id=command.error_file_id,
    )
