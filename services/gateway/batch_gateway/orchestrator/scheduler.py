"""Offers chunks to workers, late: only as many as can be taken soon.

Writes hints to the work queue, nothing to the log. Per model a window of chunks is out, sized by
the live workers that serve it; each lease that appears on the board makes room for the next. Which
job that is, is decided at that moment (see `policy`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import nats.errors
import structlog
from nats.js.errors import Error as JetStreamError

from batch_gateway.orchestrator.board import Board, Change, JobView
from batch_gateway.orchestrator.policy import Candidate, share_out
from batch_gateway.orchestrator.roster import Roster
from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.ids import JobId
from vllm_batch.messaging.consumer import Hint, HintQueue
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

AWAY = (nats.errors.Error, JetStreamError, TimeoutError, ConnectionError)
CHECK_SECONDS = 5.0
_FAULT_PAUSE_SECONDS = 0.5
_FAULT_PAUSE_SECONDS_MAX = 30.0

ChunkKey = tuple[JobId, int]


@dataclass(slots=True)
class _Offer:
    """A hint that is out: its place in the queue (0: not known yet), when it was looked at."""

    epoch: int
    sequence: int
    looked_at: float


class Scheduler:
    """Keeps every model's window full. ``queue_of`` returns a model's hint queue."""

    def __init__(
        self,
        board: Board,
        roster: Roster,
        queue_of: Callable[[str], HintQueue],
        settings: Settings,
        monotonic: Callable[[], float],
    ) -> None:
        self._board = board
        self._roster = roster
        self._queue_of = queue_of
        self._window = settings.release_window_chunks
        self._every_seconds = settings.reconcile_seconds
        self._monotonic = monotonic
        self._waiting: dict[str, dict[JobId, list[int]]] = {}
        """Per model and running job: a heap of ready chunks that are not offered."""
        self._offers: dict[str, dict[ChunkKey, _Offer]] = {}
        self._paused: list[tuple[float, JobId, int]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: frozenset[str] = frozenset()
        self._looked_at = monotonic()

    async def run(self) -> None:
        """Offer for ever."""
        self._waiting, self._paused = {}, []
        watch = self._board.watch(workers=True)
        try:
            while True:
                self._take_in(await watch.wait(self._every_seconds))
                self._fill()
                self._look_after_offers()
        finally:
            self._board.unwatch(watch)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_in(self, changes: set[Change]) -> None:
        now = self._monotonic()
        for job_id, number in changes:
            view = self._board.jobs.get(job_id)
            if view is None or not view.runnable or view.job.started is None:
                self._forget_job(job_id)
                continue
            model = view.job.started.model
            jobs = self._waiting.setdefault(model, {})
            if job_id not in jobs:
                jobs[job_id] = []
                for ready in view.ready:
                    self._enqueue(jobs[job_id], view, job_id, ready, now)
            elif number is not None:
                self._enqueue(jobs[job_id], view, job_id, number, now)
        while self._paused and self._paused[0][0] <= now:
            _, job_id, number = heapq.heappop(self._paused)
            for jobs in self._waiting.values():
                if job_id in jobs:
                    heapq.heappush(jobs[job_id], number)

    def _enqueue(
        self, heap: list[int], view: JobView, job_id: JobId, number: int, now: float
    ) -> None:
        faults = view.chunks[number].faults
        if faults == 0:
            heapq.heappush(heap, number)
            return
        pause = min(_FAULT_PAUSE_SECONDS * 2 ** min(faults, 10), _FAULT_PAUSE_SECONDS_MAX)
        heapq.heappush(self._paused, (now + pause, job_id, number))

    def _forget_job(self, job_id: JobId) -> None:
        for model, jobs in list(self._waiting.items()):
            jobs.pop(job_id, None)
            if not jobs and not self._offers.get(model):
                del self._waiting[model]

    def _fill(self) -> None:
        self._roster.sync()
        alive = self._roster.alive_by_model()
        for model, jobs in self._waiting.items():
            offers = self._offers.setdefault(model, {})
            self._drop_taken(offers)
            free = self._window * alive.get(model, 0) - len(offers)
            if free <= 0:
                continue
            out: dict[JobId, int] = {}
            for job_id, _ in offers:
                out[job_id] = out.get(job_id, 0) + 1
            candidates = [self._candidate(job_id, jobs, out) for job_id in jobs]
            for job_id in share_out(candidates, free):
                self._offer_next(model, job_id, jobs[job_id], offers)

    def _candidate(
        self, job_id: JobId, jobs: dict[JobId, list[int]], out: dict[JobId, int]
    ) -> Candidate:
        view = self._board.jobs[job_id]
        submitted = view.job.submitted
        return Candidate(
            job_id=job_id,
            project=submitted.project,
            priority=submitted.priority,
            deadline=submitted.expires_at,
            submitted_seq=view.submitted_seq,
            waiting=len(jobs[job_id]),
            under_way=len(view.leased) + out.get(job_id, 0),
        )

    def _drop_taken(self, offers: dict[ChunkKey, _Offer]) -> None:
        for key in [key for key, offer in offers.items() if not self._is_open(key, offer)]:
            del offers[key]

    def _is_open(self, key: ChunkKey, offer: _Offer) -> bool:
        view = self._board.jobs.get(key[0])
        if view is None or not view.runnable:
            return False
        chunk = view.chunks[key[1]].chunk
        return chunk.status is ChunkStatus.READY and chunk.epoch == offer.epoch

    def _offer_next(
        self, model: str, job_id: JobId, heap: list[int], offers: dict[ChunkKey, _Offer]
    ) -> None:
        view = self._board.jobs[job_id]
        while heap:
            number = heapq.heappop(heap)
            if number in view.ready and (job_id, number) not in offers:
                offer = _Offer(view.chunks[number].chunk.epoch, 0, self._monotonic())
                offers[job_id, number] = offer
                self._spawn(self._publish(model, (job_id, number), offer))
                return

    async def _publish(self, model: str, key: ChunkKey, offer: _Offer) -> None:
        try:
            offer.sequence = await self._queue_of(model).offer(Hint(*key))
        except AWAY as error:
            # The look after the offers finds it missing and offers it again.
            log.warning("hint not offered yet", job=key[0], chunk=key[1], error=repr(error))

    def _look_after_offers(self) -> None:
        """Look for hints that got lost: each now and then, all at once when a worker ended."""
        now = self._monotonic()
        workers = frozenset(
            worker_id for worker_id, view in self._board.workers.items() if not view.ended_seq
        )
        somebody_ended = bool(self._workers - workers)
        self._workers = workers
        if somebody_ended:
            # It may have had hints in hand, which would only come back after the ack wait.
            for model, offers in self._offers.items():
                for key, offer in offers.items():
                    offer.looked_at = now
                    self._spawn(self._publish(model, key, offer))
        elif now - self._looked_at >= CHECK_SECONDS:
            self._looked_at = now
            for model, offers in self._offers.items():
                for key, offer in offers.items():
                    if now - offer.looked_at >= CHECK_SECONDS:
                        self._spawn(self._check(model, key, offer))

    async def _check(self, model: str, key: ChunkKey, offer: _Offer) -> None:
        try:
            if offer.sequence and await self._queue_of(model).is_waiting(offer.sequence):
                return
        except AWAY as error:
            log.warning("hint not looked at", job=key[0], chunk=key[1], error=repr(error))
            return
        if self._offers.get(model, {}).get(key) is offer and self._is_open(key, offer):
            log.info("hint offered again", job=key[0], chunk=key[1])
            await self._publish(model, key, offer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
