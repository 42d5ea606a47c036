"""The board: every open job with its chunks, every worker and model, folded from events. Pure
bookkeeping.

Owns nothing that is not in the log. Finished jobs are taken off it, so it stays as small as the
work that is open. Who wants to know what changed takes a `Watch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.aggregates.job import Job, JobStatus
from vllm_batch.events import (
    ChunkLeased,
    ChunkPlanned,
    ChunkReleased,
    JobSubmitted,
    Recorded,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorkerStopped,
)
from vllm_batch.events.chunk import ChunkEvent
from vllm_batch.events.job import JobEvent
from vllm_batch.events.worker import WorkerEvent
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.model_registry import ModelRegistry

_FAULTY = frozenset({"error", "engine_failed"})
_LIFE = WorkerStarted | WorkerReady | WorkerStopped | WorkerLost


Change = tuple[JobId, int | None]
"""A job that changed, or one chunk of it that became ready to be leased."""


@dataclass(slots=True)
class ChunkView:
    """A chunk and its last sequence; ``leased_seq`` and ``leased_at`` are of the present lease."""

    chunk: Chunk
    seq: int
    leased_seq: int = 0
    leased_at: datetime | None = None
    faults: int = 0
    """How often a worker gave it back because something went wrong."""


@dataclass(slots=True)
class JobView:
    """An open job, its last sequence and its chunks; ``ending_since`` is when this process first
    saw that the job is to end early, in monotonic seconds."""

    job: Job
    seq: int
    submitted_seq: int
    traceparent: str | None = None
    chunks: dict[int, ChunkView] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    leased: set[int] = field(default_factory=set)
    ending_since: float | None = None

    @property
    def runnable(self) -> bool:
        """Whether its ready chunks may be leased."""
        return self.job.status is JobStatus.RUNNING

    def model_of(self, number: int) -> str:
        """Return the model that a chunk is for."""
        return self.chunks[number].chunk.planned.model


@dataclass(slots=True)
class WorkerView:
    """A worker as its own events have it; ``ended_seq`` is set once it stopped or was lost.

    ``gone``: its process is known to be over, because it said so or its successor has started.
    ``seq`` is 0 for one that is only known from its leases. ``base``: the first of the models it
    serves, of which the others are adapters; ``configured``: the one it began with.
    """

    worker_id: WorkerId
    seq: int = 0
    name: str = ""
    engine: str = ""
    models: frozenset[str] = frozenset()
    base: str | None = None
    base_since: datetime | None = None
    configured: str | None = None
    ended_seq: int | None = None
    gone: bool = False
    leases: set[tuple[JobId, int]] = field(default_factory=set)

    def serves(self, models: list[str], since: datetime) -> None:
        """Take note of what it serves from now on."""
        self.models = frozenset(models)
        base = models[0] if models else None
        if base != self.base:
            self.base, self.base_since = base, since
            self.configured = self.configured or base


class Watch:
    """Collects what changed until it is asked; one per duty."""

    def __init__(self) -> None:
        self._changes: set[Change] = set()
        self._event = asyncio.Event()

    def note(self, job_id: JobId, ready_chunk: int | None = None) -> None:
        """Something about the job is new, or a chunk of it became ready."""
        self._changes.add((job_id, ready_chunk))
        self._event.set()

    def wake(self) -> None:
        """Have `wait` return although no job changed."""
        self._event.set()

    def take(self) -> set[Change]:
        """Return what changed since the last call."""
        self._event.clear()
        changes, self._changes = self._changes, set()
        return changes

    async def wait(self, timeout_seconds: float | None = None) -> set[Change]:
        """Wait for a change, at most ``timeout_seconds``; return what changed."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            return set()
        return self.take()


class Board:
    """State of everything that is open. ``position``: the last sequence that was folded in."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.jobs: dict[JobId, JobView] = {}
        self.workers: dict[WorkerId, WorkerView] = {}
        self.models: set[str] = set()
        """Every model that a worker has ever served."""
        self.registry = ModelRegistry()
        self.position = 0
        self._monotonic = monotonic
        self._job_watches: list[Watch] = []
        self._new_job_watches: list[Watch] = []
        self._worker_watches: list[Watch] = []
        self._moved = asyncio.Condition()

    def watch(self, *, workers: bool = False) -> Watch:
        """Return a watch over jobs and chunks (and workers) that has everything open noted."""
        watch = self.watch_workers() if workers else Watch()
        for job_id, view in self.jobs.items():
            watch.note(job_id)
            for number in view.ready:
                watch.note(job_id, number)
        self._job_watches.append(watch)
        return watch

    def watch_new_jobs(self) -> Watch:
        """Return a watch that notes each job once, when it appears."""
        watch = Watch()
        for job_id in self.jobs:
            watch.note(job_id)
        self._new_job_watches.append(watch)
        return watch

    def watch_workers(self) -> Watch:
        """Return a watch over the workers."""
        watch = Watch()
        watch.wake()
        self._worker_watches.append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Forget a watch."""
        for watches in (self._job_watches, self._new_job_watches, self._worker_watches):
            if watch in watches:
                watches.remove(watch)

    async def reached(self, seq: int) -> None:
        """Wait until everything up to ``seq`` is on the board."""
        async with self._moved:
            while self.position < seq:
                await self._moved.wait()

    async def move_to(self, seq: int) -> None:
        """Tell those who wait that everything up to ``seq`` is on the board."""
        self.position = max(self.position, seq)
        async with self._moved:
            self._moved.notify_all()

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; one that is in already changes nothing."""
        event = recorded.event
        if isinstance(event, ChunkEvent):
            self._apply_chunk(event, recorded)
        elif isinstance(event, JobEvent):
            self._apply_job(event, recorded)
        elif isinstance(event, WorkerEvent):
            self._apply_worker(event, recorded)
        else:
            self.registry.apply(recorded)

    def _apply_job(self, event: JobEvent, recorded: Recorded) -> None:
        view = self.jobs.get(event.job_id)
        if view is None:
            if not isinstance(event, JobSubmitted):
                return  # of a job that has ended
            job = job_rules.evolve(None, recorded)
            view = JobView(job, recorded.seq, recorded.seq, recorded.traceparent)
            self.jobs[event.job_id] = view
            for watch in self._new_job_watches:
                watch.note(event.job_id)
        elif recorded.seq > view.seq:
            view.job = job_rules.evolve(view.job, recorded)
            view.seq = recorded.seq
        else:
            return
        if view.ending_since is None and view.job.status in {
            JobStatus.CANCELLING,
            JobStatus.EXPIRING,
        }:
            view.ending_since = self._monotonic()
        if view.job.terminal:
            self._forget(event.job_id, view)
        self._note(event.job_id)

    def _forget(self, job_id: JobId, view: JobView) -> None:
        del self.jobs[job_id]
        for number in view.leased:
            self._end_lease(job_id, number, view.chunks[number].chunk.worker_id)

    def _apply_chunk(self, event: ChunkEvent, recorded: Recorded) -> None:
        job = self.jobs.get(event.job_id)
        if job is None:
            return
        number = event.chunk
        view = job.chunks.get(number)
        if view is None:
            if not isinstance(event, ChunkPlanned):
                return
            view = ChunkView(chunk_rules.evolve(None, recorded), recorded.seq)
            job.chunks[number] = view
        elif recorded.seq > view.seq:
            owner = view.chunk.worker_id
            view.chunk = chunk_rules.evolve(view.chunk, recorded)
            view.seq = recorded.seq
            if view.chunk.worker_id != owner:
                self._end_lease(event.job_id, number, owner)
            if isinstance(event, ChunkLeased):
                view.leased_seq, view.leased_at = recorded.seq, recorded.time
            elif isinstance(event, ChunkReleased) and event.reason in _FAULTY:
                view.faults += 1
        else:
            return
        self._place(job, event.job_id, number, view)

    def _place(self, job: JobView, job_id: JobId, number: int, view: ChunkView) -> None:
        status = view.chunk.status
        was_ready = number in job.ready
        job.ready.discard(number)
        job.leased.discard(number)
        if status is ChunkStatus.READY:
            job.ready.add(number)
            if not was_ready:
                self._note(job_id, number)
        elif status is ChunkStatus.LEASED and view.chunk.worker_id is not None:
            job.leased.add(number)
            self._worker(view.chunk.worker_id).leases.add((job_id, number))
        self._note(job_id)

    def _end_lease(self, job_id: JobId, number: int, owner: WorkerId | None) -> None:
        worker = self.workers.get(owner) if owner else None
        if worker is not None:
            worker.leases.discard((job_id, number))
            self._drop_if_over(worker)

    def _worker(self, worker_id: WorkerId) -> WorkerView:
        view = self.workers.get(worker_id)
        if view is None:
            view = self.workers[worker_id] = WorkerView(worker_id)
            self._note_workers()
        return view

    def _apply_worker(self, event: WorkerEvent, recorded: Recorded) -> None:
        known = self.workers.get(event.worker_id)
        if known is not None and recorded.seq <= known.seq:
            return
        if known is None and not isinstance(event, _LIFE):
            return  # what is said of a worker after its end brings it back to no board
        view = self._worker(event.worker_id)
        view.seq = recorded.seq
        match event:
            case WorkerStarted(name=name, engine=engine):
                view.name, view.engine = name, engine
                self._replace_older(view)
            case WorkerReady(models=models):
                view.serves(models, recorded.time)
                view.ended_seq = None
                view.gone = False  # it was taken for lost, and says that it is not
                self.models.update(models)
            case WorkerStopped() | WorkerLost():
                view.ended_seq = recorded.seq
                if isinstance(event, WorkerStopped) or event.reason == "replaced":
                    view.gone = True
                self._drop_if_over(view)
        self._note_workers()

    def _replace_older(self, newer: WorkerView) -> None:
        for view in list(self.workers.values()):
            if view is not newer and view.name == newer.name and view.seq < newer.seq:
                view.gone = True
                self._drop_if_over(view)

    def _drop_if_over(self, view: WorkerView) -> None:
        """Forget a worker that will not come back. One that only went silent may."""
        over = view.ended_seq is not None and view.gone
        if (over or view.seq == 0) and not view.leases:
            self.workers.pop(view.worker_id, None)

    def _note(self, job_id: JobId, ready_chunk: int | None = None) -> None:
        for watch in self._job_watches:
            watch.note(job_id, ready_chunk)

    def _note_workers(self) -> None:
        for watch in self._worker_watches:
            watch.wake()
