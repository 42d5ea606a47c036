"""The event store's twin in memory: same contract, no server. For unit tests of what stands on
it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime

from vllm_batch import ids, tracing
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.errors import Conflict
from vllm_batch.events import Event, Recorded, decode, encode
from vllm_batch.ids import EventId
from vllm_batch.messaging import subjects as subject_names

BATCH_EVENTS_MAX = 1000


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a NATS wildcard ``pattern`` covers ``subject``."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or part not in {"*", given[index]}:
            return False
    return len(wanted) == len(given)


class MemoryEventStore:
    """Keeps encoded events in a list, so that what is read back went through the wire format."""

    def __init__(
        self,
        *,
        source: str = "memory",
        clock: Clock | None = None,
        new_event_id: Callable[[], EventId] = ids.new_event_id,
    ) -> None:
        self._source = source
        self._clock = clock or SystemClock()
        self._new_event_id = new_event_id
        self._identity = ids.new("log_")
        self._log: list[tuple[str, bytes]] = []
        self._last: dict[str, int] = {}
        self._grown = asyncio.Condition()

    async def append(
        self,
        event: Event,
        *,
        expected: int,
        event_id: EventId | None = None,
        at: datetime | None = None,
    ) -> Recorded:
        """Record ``event``; see `EventStore.append`."""
        aggregate = subject_names.of_aggregate(event)
        event_id = event_id or self._new_event_id()
        last = self._last.get(aggregate, 0)
        if last != expected:
            if last and (again := decode(self._log[last - 1][1], last)).id == event_id:
                return again
            raise Conflict(f"{aggregate} is at {last}, not at {expected}")
        now = at or self._clock.now()
        payload = encode(
            event,
            event_id=event_id,
            source=self._source,
            time=now,
            traceparent=tracing.traceparent(),
        )
        async with self._grown:
            self._log.append((subject_names.of_event(event), payload))
            self._last[aggregate] = seq = len(self._log)
            self._grown.notify_all()
        return decode(payload, seq)

    async def read(self, subject: str, *, after: int = 0) -> AsyncIterator[list[Recorded]]:
        """Yield what is there now; see `EventStore.read`."""
        found = self._select([subject], after, len(self._log))
        for start in range(0, len(found), BATCH_EVENTS_MAX):
            yield found[start : start + BATCH_EVENTS_MAX]

    async def follow(
        self, subjects: Sequence[str], *, after: int = 0
    ) -> AsyncIterator[list[Recorded]]:
        """Yield what is there and what comes; see `EventStore.follow`."""
        seen = after
        while True:
            end = len(self._log)
            found = self._select(subjects, seen, end)
            seen = max(seen, end)
            if found:
                yield found
                continue
            async with self._grown:
                if len(self._log) <= seen:
                    await self._grown.wait()

    def _select(self, patterns: Sequence[str], after: int, end: int) -> list[Recorded]:
        return [
            decode(payload, index + 1)
            for index, (subject, payload) in enumerate(self._log[after:end], start=after)
            if any(matches(pattern, subject) for pattern in patterns)
        ]

    async def last_sequence(self) -> int:
        """Return the number of events."""
        return len(self._log)

    async def identity(self) -> str:
        """Return this log's random name."""
        return self._identity
