"""Closes the window of jobs whose time is up: records ``job.window_closed``.

The window counts from the job's creation, on the wall clock, also across restarts; one timer, for
the job that is due first.
"""

from __future__ import annotations

import heapq

import structlog

from batch_gateway.orchestrator.board import Board, Change
from vllm_batch.aggregates import job as rules
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.clock import Clock
from vllm_batch.errors import EventStoreError, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

_OPEN = frozenset({JobStatus.VALIDATING, JobStatus.RUNNING})
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 30.0
"""The wall clock may be set: look at least this often."""


class Expiry:
    """A heap of deadlines."""

    def __init__(self, board: Board, store: EventStore, clock: Clock) -> None:
        self._board = board
        self._store = store
        self._clock = clock
        self._due: list[tuple[float, JobId]] = []
        self._known: set[JobId] = set()

    async def run(self) -> None:
        """Close windows for ever."""
        self._due, self._known = [], set()
        watch = self._board.watch_new_jobs()
        try:
            self._take_in(watch.take())
            while True:
                await self.close_what_is_due()
                self._take_in(await watch.wait(self._pause()))
        finally:
            self._board.unwatch(watch)

    def _take_in(self, changes: set[Change]) -> None:
        for job_id, _ in changes:
            view = self._board.jobs.get(job_id)
            if view is not None and job_id not in self._known:
                self._known.add(job_id)
                heapq.heappush(self._due, (float(view.job.submitted.expires_at), job_id))

    def _pause(self) -> float:
        if not self._due:
            return _LOOK_SECONDS
        return min(max(self._due[0][0] - self._clock.now().timestamp(), 0.0), _LOOK_SECONDS)

    async def close_what_is_due(self) -> None:
        """Close every window whose time is up by now."""
        while self._due and self._due[0][0] <= self._clock.now().timestamp():
            _, job_id = heapq.heappop(self._due)
            view = self._board.jobs.get(job_id)
            if view is None or view.job.status not in _OPEN:
                self._known.discard(job_id)
                continue
            try:
                await append_decided(
                    self._store,
                    subjects.job(job_id),
                    rules.evolve,
                    lambda state: rules.decide(state, rules.CloseWindow()),
                    known=(view.job, view.seq),
                )
            except Rejected:
                pass  # it was cancelled or ended meanwhile
            except EventStoreError as error:
                log.warning("window not closed yet", job=job_id, error=str(error))
                again = self._clock.now().timestamp() + _RETRY_SECONDS
                heapq.heappush(self._due, (again, job_id))
                return
            else:
                log.info("completion window closed", job=job_id)
            self._known.discard(job_id)
