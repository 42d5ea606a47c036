"""Whether batches are open: on a single GPU a training waits until they are through."""

from __future__ import annotations

import asyncio

from vllm_batch.clock import Clock
from vllm_batch.event_store import EventStore, folds
from vllm_batch.events import (
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobSubmitted,
    Recorded,
)
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

LOOK_SECONDS = 0.2
_ENDS = (JobCompleted, JobFailed, JobExpired, JobCancelled)


class Backlog:
    """The open jobs. ``idle_seconds``: how long there have to be none; 0: nobody waits."""

    def __init__(self, idle_seconds: float, clock: Clock) -> None:
        self.position = 0
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._open: set[JobId] = set()
        self._empty_since = clock.monotonic()

    def apply(self, recorded: Recorded) -> None:
        """Take one event in."""
        self.position = recorded.seq
        event = recorded.event
        if isinstance(event, JobSubmitted):
            self._open.add(event.job_id)
        elif isinstance(event, _ENDS):
            self._open.discard(event.job_id)
            self._empty_since = self._clock.monotonic()

    async def keep_up(self, store: EventStore) -> None:
        """Follow the jobs, for ever; where nobody waits for them, do nothing."""
        if self._idle_seconds:
            await folds.keep_up(store, subjects.ALL_JOBS, self)

    async def idle(self) -> None:
        """Return when no job has been open for long enough."""
        # Time passing is no event: the quiet after the last job has to be looked at.
        while self._idle_seconds and not self._is_idle():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)

    def _is_idle(self) -> bool:
        since = self._clock.monotonic() - self._empty_since
        return not self._open and since >= self._idle_seconds
