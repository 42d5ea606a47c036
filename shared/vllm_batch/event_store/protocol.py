"""What an event store does, whatever holds the events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from vllm_batch.errors import Conflict
from vllm_batch.events import Event, Recorded
from vllm_batch.ids import EventId

State = TypeVar("State")

DECIDE_ATTEMPTS_MAX = 20


class EventStore(Protocol):
    """One totally ordered log of events; optimistic concurrency per aggregate."""

    async def append(
        self,
        event: Event,
        *,
        expected: int,
        event_id: EventId | None = None,
        at: datetime | None = None,
    ) -> Recorded:
        """Record ``event`` if its aggregate's last sequence is ``expected`` (0: it must be new).

        Survives lost acknowledgements: an append that already happened is found again, not
        repeated. ``at``: the event's time, for a caller whose event counts from that very moment;
        default now.

        Raises:
            Conflict: the aggregate has moved on.
            EventStoreUnavailable: no answer in time; whether it happened is unknown.
        """
        ...

    def read(self, subject: str, *, after: int = 0) -> AsyncIterator[list[Recorded]]:
        """Yield what is in the log now under ``subject`` (wildcards allowed), in order, in
        batches."""
        ...

    def follow(self, subjects: Sequence[str], *, after: int = 0) -> AsyncIterator[list[Recorded]]:
        """Yield what is and what comes after sequence ``after``, in order, without gaps, for
        ever."""
        ...

    async def last_sequence(self) -> int:
        """Return the sequence of the newest event, 0 in an empty log."""
        ...

    async def identity(self) -> str:
        """Return what tells this log from every other one (it changes when the log is made
        anew)."""
        ...


async def fold(
    store: EventStore,
    subject: str,
    evolve: Callable[[State | None, Recorded], State],
) -> tuple[State | None, int]:
    """Return an aggregate's state and its last sequence (None and 0 if it does not exist)."""
    state: State | None = None
    seq = 0
    async for batch in store.read(subject):
        for recorded in batch:
            state = evolve(state, recorded)
            seq = recorded.seq
    return state, seq


async def append_decided(
    store: EventStore,
    subject: str,
    evolve: Callable[[State | None, Recorded], State],
    decide: Callable[[State | None], Event],
    *,
    known: tuple[State, int] | None = None,
) -> tuple[Recorded, State]:
    """Load the aggregate under ``subject``, decide, append; on a conflict read again and decide
    anew.

    ``known``: state and last sequence, from a caller who follows the aggregate; then the first
    attempt needs no reading.

    Raises:
        Rejected: the rules refuse (see the ``decide`` given).
        Conflict: others were faster every time.
        EventStoreUnavailable: no answer in time.
    """
    for attempt in range(DECIDE_ATTEMPTS_MAX):
        if known is not None and attempt == 0:
            state: State | None
            state, seq = known
        else:
            state, seq = await fold(store, subject, evolve)
        event = decide(state)
        try:
            recorded = await store.append(event, expected=seq)
        except Conflict:
            if attempt == DECIDE_ATTEMPTS_MAX - 1:
                raise
            continue
        return recorded, evolve(state, recorded)
    raise AssertionError("unreachable")
