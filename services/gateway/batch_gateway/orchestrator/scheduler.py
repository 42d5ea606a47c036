"""Offers chunks to workers, late: only as many as can be taken soon.

Writes hints to the work queue, nothing to the log. Per model a window of chunks is out, sized by
the live workers that serve it; each lease that appears on the board makes room for the next. Which
job that is, is decided at that moment (see `policy`). A job that mixes models is in the line of
each of them, with the chunks that are for it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import structlog
from nats.js.errors import Error as JetStreamError

from batch_gateway.orchestrator.board import Board, Change, JobView
from batch_gateway.orchestrator.policy import Backlog
from batch_gateway.orchestrator.roster import Roster
from vllm_batch import tracing
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
    """A hint that is out: its place in the queue (0: not known yet), when it was looked at, and
    whether it is to be taken back as soon as its place is known."""

    epoch: int
    sequence: int
    looked_at: float
    withdrawn: bool = False


@dataclass(slots=True)
class _Model:
    """What is to be done for one model: per running job a heap of the ready chunks that are not
    offered, the jobs' order, and what is offered."""

    waiting: dict[JobId, list[int]] = field(default_factory=dict)
    backlog: Backlog = field(default_factory=Backlog)
    offers: dict[ChunkKey, _Offer] = field(default_factory=dict)
    offered: Counter[JobId] = field(default_factory=Counter)
    given_back: bool = False
    """Whether a chunk came back since the window was filled: it goes before new ones."""

    @property
    def over(self) -> bool:
        """Whether there is nothing left of it."""
        return not self.waiting and not self.offers


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
        self._models: dict[str, _Model] = {}
        self._models_of: dict[JobId, set[str]] = {}
        self._paused: list[tuple[float, JobId, int]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: frozenset[str] = frozenset()
        self._looked_at = monotonic()

    async def run(self) -> None:
        """Offer for ever."""
        self._models, self._models_of, self._paused = {}, {}, []
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
        changed = {job_id for job_id, _ in changes}
        for job_id, number in changes:
            view = self._board.jobs.get(job_id)
            if view is None or not view.runnable or view.job.started is None:
                self._forget_job(job_id)
            elif job_id not in self._models_of:
                self._add_job(job_id, view, now)
            elif number is not None:
                self._enqueue(view, job_id, number, now)
        while self._paused and self._paused[0][0] <= now:
            _, job_id, number = heapq.heappop(self._paused)
            if job_id in self._models_of:
                self._line_up(self._board.jobs[job_id], job_id, number)
                changed.add(job_id)
        for model in self._models.values():
            changed.update(self._drop_taken(model))
        for job_id in changed & self._models_of.keys():
            for name in self._models_of[job_id]:
                self._update(name, job_id)

    def _add_job(self, job_id: JobId, view: JobView, now: float) -> None:
        self._models_of[job_id] = set()
        for number in view.ready:
            self._enqueue(view, job_id, number, now)

    def _forget_job(self, job_id: JobId) -> None:
        for name in self._models_of.pop(job_id, ()):
            model = self._models[name]
            del model.waiting[job_id]
            model.backlog.remove(job_id)

    def _enqueue(self, view: JobView, job_id: JobId, number: int, now: float) -> None:
        """Line up a ready chunk; one that workers gave back with an error has to wait a while."""
        faults = view.chunks[number].faults
        if faults == 0:
            self._line_up(view, job_id, number)
            return
        pause = min(_FAULT_PAUSE_SECONDS * 2 ** min(faults, 10), _FAULT_PAUSE_SECONDS_MAX)
        heapq.heappush(self._paused, (now + pause, job_id, number))

    def _line_up(self, view: JobView, job_id: JobId, number: int) -> None:
        name = view.model_of(number)
        self._models_of[job_id].add(name)
        model = self._models.setdefault(name, _Model())
        heapq.heappush(model.waiting.setdefault(job_id, []), number)
        chunk = view.chunks[number]
        model.given_back |= chunk.chunk.epoch > 0 and chunk.faults == 0

    def _update(self, name: str, job_id: JobId) -> None:
        model, view = self._models[name], self._board.jobs[job_id]
        model.backlog.update(
            view.job.submitted,
            view.submitted_seq,
            waiting=len(model.waiting[job_id]),
            under_way=self._leased(name, job_id, view) + model.offered[job_id],
        )

    def _leased(self, name: str, job_id: JobId, view: JobView) -> int:
        if len(self._models_of[job_id]) == 1:
            return len(view.leased)
        return sum(view.model_of(number) == name for number in view.leased)

    def _drop_taken(self, model: _Model) -> set[JobId]:
        """Drop offers that were taken or are not wanted any more; return whose they were."""
        taken = [key for key, offer in model.offers.items() if not self._is_open(key, offer)]
        for key in taken:
            self._drop_offer(model, key)
        return {job_id for job_id, _ in taken}

    @staticmethod
    def _drop_offer(model: _Model, key: ChunkKey) -> None:
        del model.offers[key]
        model.offered[key[0]] -= 1
        if not model.offered[key[0]]:
            del model.offered[key[0]]

    def _is_open(self, key: ChunkKey, offer: _Offer) -> bool:
        view = self._board.jobs.get(key[0])
        if view is None or not view.runnable:
            return False
        chunk = view.chunks[key[1]].chunk
        return chunk.status is ChunkStatus.READY and chunk.epoch == offer.epoch

    def _fill(self) -> None:
        self._roster.sync()
        alive = self._roster.alive_by_model()
        for name, model in list(self._models.items()):
            if model.over:
                del self._models[name]
                continue
            window = self._window * alive.get(name, 0)
            full = len(model.offers) >= window
            offered = (job_id for job_id, _ in model.offers)
            if model.given_back or (full and model.backlog.waits_behind(offered)):
                self._make_way(name, model)
            while len(model.offers) < window and (job_id := model.backlog.take()) is not None:
                self._offer_next(name, model, job_id)

    def _make_way(self, name: str, model: _Model) -> None:
        """Withdraw the hints of chunks that nobody has begun; they are offered again, in the order
        that counts now.

        So a chunk that was begun and came back need not wait behind them (its batch may wait for
        nothing else), nor a small batch that has just come: on a slow engine a window of large
        chunks takes minutes.
        """
        model.given_back = False
        new = [(key, offer) for key, offer in model.offers.items() if offer.epoch == 0]
        for (job_id, number), offer in new:
            self._drop_offer(model, (job_id, number))
            heapq.heappush(model.waiting[job_id], number)
            self._update(name, job_id)
            offer.withdrawn = True
            self._spawn(self._withdraw(name, offer))

    async def _withdraw(self, model: str, offer: _Offer) -> None:
        sequence, offer.sequence = offer.sequence, 0
        if not sequence:
            return  # not known yet
        try:
            await self._queue_of(model).withdraw(sequence)
        except AWAY as error:
            # Somebody takes it later, and finds that the chunk is leased or may lease it.
            log.warning("hint not withdrawn", model=model, error=repr(error))

    def _offer_next(self, name: str, model: _Model, job_id: JobId) -> None:
        view, heap = self._board.jobs[job_id], model.waiting[job_id]
        while heap:
            number = heapq.heappop(heap)
            key = (job_id, number)
            if number in view.ready and key not in model.offers:
                offer = _Offer(view.chunks[number].chunk.epoch, 0, self._monotonic())
                model.offers[key] = offer
                model.offered[job_id] += 1
                self._spawn(self._publish(name, key, offer))
                break
        self._update(name, job_id)

    async def _publish(self, model: str, key: ChunkKey, offer: _Offer) -> None:
        try:
            with tracing.continued(self._traceparent_of(key[0])):
                offer.sequence = await self._queue_of(model).offer(Hint(*key))
            if offer.withdrawn:
                await self._withdraw(model, offer)
        except AWAY as error:
            # The look after the offers finds it missing and offers it again.
            log.warning("hint not offered yet", job=key[0], chunk=key[1], error=repr(error))

    def _traceparent_of(self, job_id: JobId) -> str | None:
        view = self._board.jobs.get(job_id)
        return view.traceparent if view is not None else None

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
            for name, model in self._models.items():
                for key, offer in model.offers.items():
                    offer.looked_at = now
                    self._spawn(self._withdraw(name, offer))
                    self._spawn(self._publish(name, key, offer))
        elif now - self._looked_at >= CHECK_SECONDS:
            self._looked_at = now
            for name, model in self._models.items():
                for key, offer in model.offers.items():
                    if now - offer.looked_at >= CHECK_SECONDS:
                        self._spawn(self._check(name, key, offer))

    async def _check(self, name: str, key: ChunkKey, offer: _Offer) -> None:
        try:
            if offer.sequence and await self._queue_of(name).is_waiting(offer.sequence):
                return
        except AWAY as error:
            log.warning("hint not looked at", job=key[0], chunk=key[1], error=repr(error))
            return
        model = self._models.get(name)
        if model and model.offers.get(key) is offer and self._is_open(key, offer):
            log.info("hint offered again", job=key[0], chunk=key[1])
            await self._publish(name, key, offer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
