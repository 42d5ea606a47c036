"""The rules of a training run. Pure.

    (none) ──request──► REQUESTED ──prepare──► PREPARED ──start──► RUNNING ──complete──► COMPLETED
                            │                     │                │  ↺ progress            │  │
                            └─────────────────────┴──────fail──────┴────────────────────────┘  │
                                                   ▼                                       evaluate
                                                 FAILED                                        ▼
                  ROLLED_BACK ◄──roll back── PROMOTED ◄──promote── EVALUATED ──reject──► REJECTED
                       └──────promote by hand──────► ▲ ◄──────promote by hand────────────────┘

Only the trainer that started a run may progress or complete it. A failed run stays failed: what
is tried again is a new run. A run that is judged was measured first, with the same numbers. Only
a person promotes what was rejected or rolled back.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from vllm_batch.errors import AlreadyDone, LeaseLost, NotFound, Rejected
from vllm_batch.events import (
    Event,
    Recorded,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingPrepared,
    TrainingProgressed,
    TrainingPromoted,
    TrainingRejected,
    TrainingRequested,
    TrainingRolledBack,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId


class RunStatus(StrEnum):
    """Where a run is."""

    REQUESTED = "requested"
    PREPARED = "prepared"
    RUNNING = "running"
    COMPLETED = "completed"
    EVALUATED = "evaluated"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


_CANCELLABLE = frozenset({RunStatus.REQUESTED, RunStatus.PREPARED, RunStatus.RUNNING})
ENDED = frozenset({RunStatus.PROMOTED, RunStatus.REJECTED, RunStatus.ROLLED_BACK, RunStatus.FAILED})

RunEvent = (
    TrainingRequested
    | TrainingPrepared
    | TrainingStarted
    | TrainingProgressed
    | TrainingCompleted
    | TrainingFailed
    | TrainingEvaluated
    | TrainingPromoted
    | TrainingRejected
    | TrainingRolledBack
)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run, folded from its events. ``requested_seq`` is its place in the log, ``seq`` that of
    its last event, ``at`` when that was recorded (UTC)."""

    requested: TrainingRequested
    requested_seq: int
    requested_at: datetime
    seq: int
    at: datetime
    status: RunStatus = RunStatus.REQUESTED
    prepared: TrainingPrepared | None = None
    started: TrainingStarted | None = None
    progress: TrainingProgressed | None = None
    completed: TrainingCompleted | None = None
    evaluated: TrainingEvaluated | None = None
    failed: TrainingFailed | None = None
    rejected: TrainingRejected | None = None
    promoted: TrainingPromoted | None = None

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.requested.run_id

    @property
    def ended(self) -> bool:
        """Whether nothing happens by itself any more."""
        return self.status in ENDED


STATUS_AFTER: dict[type[Event], RunStatus] = {
    TrainingPrepared: RunStatus.PREPARED,
    TrainingStarted: RunStatus.RUNNING,
    TrainingProgressed: RunStatus.RUNNING,
    TrainingCompleted: RunStatus.COMPLETED,
    TrainingFailed: RunStatus.FAILED,
    TrainingEvaluated: RunStatus.EVALUATED,
    TrainingPromoted: RunStatus.PROMOTED,
    TrainingRejected: RunStatus.REJECTED,
    TrainingRolledBack: RunStatus.ROLLED_BACK,
}
_KEPT: dict[type[Event], str] = {
    TrainingPrepared: "prepared",
    TrainingStarted: "started",
    TrainingProgressed: "progress",
    TrainingCompleted: "completed",
    TrainingFailed: "failed",
    TrainingEvaluated: "evaluated",
    TrainingRejected: "rejected",
    TrainingPromoted: "promoted",
}
_FROM: dict[type[Event], frozenset[RunStatus]] = {
    TrainingPrepared: frozenset({RunStatus.REQUESTED}),
    TrainingStarted: frozenset({RunStatus.PREPARED}),
    TrainingProgressed: frozenset({RunStatus.RUNNING}),
    TrainingCompleted: frozenset({RunStatus.RUNNING}),
    TrainingFailed: frozenset(
        {RunStatus.REQUESTED, RunStatus.PREPARED, RunStatus.RUNNING, RunStatus.COMPLETED}
    ),
    TrainingEvaluated: frozenset({RunStatus.COMPLETED}),
    TrainingPromoted: frozenset({RunStatus.EVALUATED}),
    TrainingRejected: frozenset({RunStatus.EVALUATED}),
    TrainingRolledBack: frozenset({RunStatus.PROMOTED}),
}
PROMOTED_BY_HAND = frozenset({RunStatus.REJECTED, RunStatus.ROLLED_BACK})
"""From where a person may promote a run."""


def evolve(state: Run | None, recorded: Recorded) -> Run:
    """Return the run after ``recorded``.

    Raises:
        Rejected: the event is none of a run's, or has no run before it.
    """
    event, seq, at = recorded.event, recorded.seq, recorded.time
    if isinstance(event, TrainingRequested):
        return Run(requested=event, requested_seq=seq, requested_at=at, seq=seq, at=at)
    if state is None or type(event) not in STATUS_AFTER:
        raise Rejected(f"event {seq} ({event.TYPE}) belongs to no training run")
    changes: dict[str, object] = {"seq": seq, "at": at, "status": STATUS_AFTER[type(event)]}
    if kept := _KEPT.get(type(event)):
        changes[kept] = event
    return msgspec.structs.replace(state, **changes)


def decide(
    state: Run | None, said: RunEvent, *, trainer: WorkerId | None = None, by_hand: bool = False
) -> RunEvent:
    """Return the event that records ``said``; ``trainer``: who speaks, where it is one;
    ``by_hand``: a person wants it, whatever the numbers.

    Raises:
        AlreadyDone: the run is there, or has gone on from there.
        LeaseLost: the run is not, or no longer, this trainer's.
        Rejected: that does not follow from where the run is.
    """
    if isinstance(said, TrainingRequested):
        if state is not None:
            raise AlreadyDone(f"run {said.run_id} was requested already")
        return said
    if state is None:
        raise Rejected(f"there is no run {said.run_id}")
    if trainer is not None and not isinstance(said, TrainingStarted):
        if state.status is not RunStatus.RUNNING or (
            state.started is None or state.started.trainer != trainer
        ):
            raise LeaseLost(f"run {said.run_id} is {state.status}, not with {trainer}")
    elif isinstance(said, TrainingProgressed | TrainingCompleted):
        raise Rejected("only a trainer may say that")
    if state.status is STATUS_AFTER[type(said)] and not isinstance(said, TrainingProgressed):
        raise AlreadyDone(f"run {said.run_id} is already {state.status}")
    is_person_s = by_hand and isinstance(said, TrainingPromoted)
    if state.status not in (PROMOTED_BY_HAND if is_person_s else _FROM[type(said)]):
        raise Rejected(f"run {said.run_id} is {state.status}: {said.TYPE} does not follow")
    if isinstance(said, TrainingPromoted | TrainingRejected):
        _check_numbers(state, said)
    return said


def cancel(state: Run | None, run_id: str, *, requested_by: str) -> TrainingFailed:
    """Return the end of a run that somebody does not want any more.

    Raises:
        NotFound: there is no such run.
        Rejected: it has ended, or is trained already and about to be judged.
    """
    if state is None:
        raise NotFound(f"there is no training run {run_id}")
    if state.status not in _CANCELLABLE:
        raise Rejected(f"run {run_id} is {state.status}: it can be cancelled until it is trained")
    return TrainingFailed(run_id=run_id, reason=f"cancelled by {requested_by}")


def _check_numbers(state: Run, said: TrainingPromoted | TrainingRejected) -> None:
    measured = state.evaluated
    if measured is None or (measured.model, measured.before, measured.after) != (
        said.model, said.before, said.after,
    ):  # fmt: skip
        raise Rejected(f"run {said.run_id} was not measured with these numbers")
