"""What a batch's chunk events say: its throughput and its segments.

Read once, and then only what is new. A page has one; it holds a count per second and the names of
the newest segments.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from vllm_batch.event_store import EventStore
from vllm_batch.events import ChunkCompleted, ChunkProgressed, Recorded
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

SEGMENTS_MAX = 200
_STEPS = 120


class BatchHistory:
    """See the module. ``newest``: segments, the last one at the end."""

    def __init__(self, store: EventStore, job_id: JobId) -> None:
        self._store = store
        self._subject = subjects.chunks_of(job_id)
        self._after = 0
        self._done: Counter[int] = Counter()
        self._failed: deque[str] = deque(maxlen=SEGMENTS_MAX)
        self.newest: deque[str] = deque(maxlen=SEGMENTS_MAX)

    async def catch_up(self) -> None:
        """Take in what has happened since the last time. Raises EventStoreUnavailable."""
        async for batch in self._store.read(self._subject, after=self._after):
            for recorded in batch:
                self._apply(recorded)
            self._after = batch[-1].seq
            await asyncio.sleep(0)  # a large batch must not hold up the other pages

    def take_failed(self) -> list[str]:
        """Return the segments with errors that were not returned before, SEGMENTS_MAX at most."""
        found = list(self._failed)
        self._failed.clear()
        return found

    def throughput(self) -> list[tuple[float, float]]:
        """Return (Unix seconds, requests/s) over the batch's time, in up to _STEPS steps."""
        if not self._done:
            return []
        first, last = min(self._done), max(self._done)
        step = max(1, (last - first) // _STEPS + 1)
        sums: Counter[int] = Counter()
        for second, count in self._done.items():
            sums[(second - first) // step] += count
        return [
            (float(first + index * step), sums[index] / step)
            for index in range((last - first) // step + 1)
        ]

    def _apply(self, recorded: Recorded) -> None:
        event = recorded.event
        if not isinstance(event, ChunkProgressed | ChunkCompleted) or event.segment is None:
            return
        segment = event.segment
        self._done[int(recorded.time.timestamp())] += segment.completed + segment.failed
        self.newest.append(segment.blob)
        if segment.failed:
            self._failed.append(segment.blob)
