"""The rules of a chunk. The lease lives here, in the log, and nowhere else.

    (none) ──plan──► READY ──lease (epoch + 1)──► LEASED ──complete──► COMPLETED
                      ▲ │                          │ │  ↺ record
                      │ └──close──► CLOSED ◄─close─┘ │
                      └────────────release───────────┘

Only the holder of the current epoch can record, complete or be released; everybody else has lost
the lease. A lease is never taken over in place: it is released first, so each takeover is on
record.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

from vllm_batch.errors import AlreadyDone, LeaseLost, Rejected
from vllm_batch.events.base import Effort, Event, Usage
from vllm_batch.events.chunk import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    ChunkReleased,
    Segment,
)
from vllm_batch.events.envelope import Recorded
from vllm_batch.ids import WorkerId


class ChunkStatus(StrEnum):
    """Where a chunk is."""

    READY = "ready"
    LEASED = "leased"
    COMPLETED = "completed"
    CLOSED = "closed"


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """State of a chunk. ``completed``, ``failed``, ``usage`` and ``effort`` count what is recorded
    so far."""

    planned: ChunkPlanned
    status: ChunkStatus = ChunkStatus.READY
    epoch: int = 0
    worker_id: WorkerId | None = None
    segments: tuple[Segment, ...] = ()
    completed: int = 0
    failed: int = 0
    usage: Usage = Usage()
    effort: Effort = Effort()
    closed: Literal["cancelled", "expired", "stuck"] | None = None

    @property
    def terminal(self) -> bool:
        """Whether nothing can change any more."""
        return self.status in {ChunkStatus.COMPLETED, ChunkStatus.CLOSED}

    @property
    def remaining(self) -> int:
        """Requests without a recorded result."""
        return self.planned.count - self.completed - self.failed


class Plan(msgspec.Struct, frozen=True):
    """Put the chunk on record."""

    event: ChunkPlanned


class Lease(msgspec.Struct, frozen=True):
    """Take the chunk to work on it."""

    worker_id: WorkerId


class Record(msgspec.Struct, frozen=True):
    """Checkpoint a segment; ``usage`` and ``effort`` are those of the segment alone."""

    epoch: int
    segment: Segment
    usage: Usage
    effort: Effort = Effort()


class Complete(msgspec.Struct, frozen=True):
    """Record the last segment, if there is one left, and end the chunk."""

    epoch: int
    segment: Segment | None
    usage: Usage
    effort: Effort = Effort()


class Release(msgspec.Struct, frozen=True):
    """Give the lease back, or take it away. ``effort``: of what was aborted."""

    epoch: int
    reason: Literal["drained", "worker_lost", "engine_failed", "cancelled", "expired", "error"]
    effort: Effort = Effort()


class Close(msgspec.Struct, frozen=True):
    """End the chunk as it is."""

    reason: Literal["cancelled", "expired", "stuck"]


Command = Plan | Lease | Record | Complete | Release | Close


def evolve(state: Chunk | None, recorded: Recorded) -> Chunk:
    """Return the state after ``recorded``.

    Raises:
        Rejected: the event is not one of a chunk's, or has no chunk before it.
    """
    event = recorded.event
    if isinstance(event, ChunkPlanned):
        return Chunk(planned=event)
    if state is None:
        raise Rejected(f"{event.TYPE} cannot be applied to no chunk")
    replace = msgspec.structs.replace
    match event:
        case ChunkLeased():
            return replace(
                state, status=ChunkStatus.LEASED, epoch=event.epoch, worker_id=event.worker_id
            )
        case ChunkProgressed() | ChunkCompleted():
            segments = (*state.segments, event.segment) if event.segment else state.segments
            done = isinstance(event, ChunkCompleted)
            return replace(
                state,
                status=ChunkStatus.COMPLETED if done else ChunkStatus.LEASED,
                worker_id=None if done else state.worker_id,
                segments=segments,
                completed=event.completed,
                failed=event.failed,
                usage=event.usage,
                effort=event.effort,
            )
        case ChunkReleased(effort=effort):
            effort = state.effort if effort is None else effort
            return replace(state, status=ChunkStatus.READY, worker_id=None, effort=effort)
        case ChunkClosed():
            return replace(state, status=ChunkStatus.CLOSED, worker_id=None, closed=event.reason)
    raise Rejected(f"{event.TYPE} cannot be applied to a chunk")


def decide(state: Chunk | None, command: Command) -> Event:
    """Return the event that ``command`` leads to.

    Raises:
        LeaseLost: the epoch is over.
        AlreadyDone: the chunk is already where the command leads.
        Rejected: the command is not allowed in this state.
    """
    if isinstance(command, Plan):
        if state is not None:
            raise AlreadyDone("the chunk is already planned")
        return command.event
    if state is None:
        raise Rejected("there is no such chunk")
    job_id, number = state.planned.job_id, state.planned.chunk
    match command:
        case Lease(worker_id):
            if state.status is not ChunkStatus.READY:
                raise LeaseLost(f"the chunk is {state.status}, not ready")
            return ChunkLeased(
                job_id=job_id, chunk=number, epoch=state.epoch + 1, worker_id=worker_id
            )
        case Record() | Complete():
            return _record(state, command)
        case Release():
            return _release(state, command)
        case Close(reason):
            return _close(state, reason)


def _release(state: Chunk, command: Release) -> Event:
    _check_epoch(state, command.epoch)
    total = (state.effort + command.effort).rounded()
    return ChunkReleased(
        job_id=state.planned.job_id,
        chunk=state.planned.chunk,
        epoch=command.epoch,
        reason=command.reason,
        effort=total if total != state.effort else None,
    )


def _close(state: Chunk, reason: Literal["cancelled", "expired", "stuck"]) -> Event:
    if state.status is ChunkStatus.CLOSED:
        raise AlreadyDone("the chunk is already closed")
    if state.terminal:
        raise Rejected("the chunk is already completed")
    return ChunkClosed(job_id=state.planned.job_id, chunk=state.planned.chunk, reason=reason)


def _check_epoch(state: Chunk, epoch: int) -> None:
    if state.status is not ChunkStatus.LEASED or state.epoch != epoch:
        raise LeaseLost(
            f"epoch {epoch} of chunk {state.planned.chunk} is over: "
            f"the chunk is {state.status} in epoch {state.epoch}"
        )


def _record(state: Chunk, command: Record | Complete) -> Event:
    _check_epoch(state, command.epoch)
    segment = command.segment
    completed = state.completed + (segment.completed if segment else 0)
    failed = state.failed + (segment.failed if segment else 0)
    recorded = completed + failed
    if recorded > state.planned.count:
        raise Rejected(f"{recorded} results for {state.planned.count} requests")
    if isinstance(command, Complete) and recorded != state.planned.count:
        raise Rejected(f"only {recorded} of {state.planned.count} requests have a result")
    if isinstance(command, Complete):
        return _recorded(ChunkCompleted, state, command, completed, failed)
    return _recorded(ChunkProgressed, state, command, completed, failed)


def _recorded(
    cls: type[ChunkCompleted] | type[ChunkProgressed],
    state: Chunk,
    command: Record | Complete,
    completed: int,
    failed: int,
) -> Event:
    fields: dict[str, Any] = {
        "job_id": state.planned.job_id,
        "chunk": state.planned.chunk,
        "epoch": command.epoch,
        "worker_id": state.worker_id,
        "completed": completed,
        "failed": failed,
        "usage": state.usage + command.usage,
        "effort": (state.effort + command.effort).rounded(),
        "segment": command.segment,
    }
    return cls(**fields)
