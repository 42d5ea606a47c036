"""Open jobs with their chunks, folded from events, and when each of them last moved.

Reads ``job.>`` and ``chunk.>``; finished jobs are dropped, so it stays as small as the work that is
open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.aggregates.job import Job
from vllm_batch.event_store import EventStore
from vllm_batch.events import (
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    JobStuck,
    JobSubmitted,
    Recorded,
)
from vllm_batch.events.chunk import ChunkEvent
from vllm_batch.events.job import JobEvent
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects


@dataclass(slots=True)
class ChunkWatch:
    """A chunk. ``moved_at``: its last lease or result; ``changed_at``: its last event. ``rounds``:
    how often it was found leased without progress since its last result; ``named_seq``: where the
    last ``job.stuck`` named it."""

    chunk: Chunk
    seq: int
    moved_at: datetime
    changed_at: datetime
    leased_seq: int = 0
    rounds: int = 0
    named_seq: int = 0


@dataclass(slots=True)
class JobWatch:
    """A job. ``moved_at``: its last change of state or result; ``told``: said of it since."""

    job: Job
    seq: int
    moved_at: datetime
    chunks: dict[int, ChunkWatch] = field(default_factory=dict)
    told: JobStuck | None = None

    def models(self) -> list[str]:
        """Return the models of its chunks that are not terminal."""
        return list(dict.fromkeys(watch.chunk.planned.model for watch in self.open()))

    def leased(self) -> list[ChunkWatch]:
        """Return its leased chunks."""
        return [w for w in self.chunks.values() if w.chunk.status is ChunkStatus.LEASED]

    def open(self) -> list[ChunkWatch]:
        """Return its chunks that are not terminal."""
        return [w for w in self.chunks.values() if not w.chunk.terminal]


class OpenJobs:
    """All open jobs."""

    def __init__(self) -> None:
        self.jobs: dict[JobId, JobWatch] = {}
        self.model_moved_at: dict[str, datetime] = {}
        """When a job of each model last had a result."""

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; one that is in already changes nothing."""
        event = recorded.event
        if isinstance(event, ChunkEvent):
            self._apply_chunk(event, recorded)
        elif isinstance(event, JobEvent):
            self._apply_job(event, recorded)

    def _apply_job(self, event: JobEvent, recorded: Recorded) -> None:
        watch = self.jobs.get(event.job_id)
        if watch is None:
            if isinstance(event, JobSubmitted):
                job = job_rules.evolve(None, recorded)
                self.jobs[event.job_id] = JobWatch(job, recorded.seq, recorded.time)
            return
        if recorded.seq <= watch.seq:
            return
        watch.job = job_rules.evolve(watch.job, recorded)
        watch.seq = recorded.seq
        if isinstance(event, JobStuck):
            watch.told = event
            for number in event.chunks:
                if (chunk := watch.chunks.get(number)) is not None:
                    chunk.rounds += 1
                    chunk.named_seq = recorded.seq
            return
        watch.moved_at, watch.told = max(watch.moved_at, recorded.time), None
        if watch.job.terminal:
            del self.jobs[event.job_id]

    def _apply_chunk(self, event: ChunkEvent, recorded: Recorded) -> None:
        job = self.jobs.get(event.job_id)
        if job is None:
            return
        watch = job.chunks.get(event.chunk)
        if watch is None:
            if isinstance(event, ChunkPlanned):
                chunk = chunk_rules.evolve(None, recorded)
                job.chunks[event.chunk] = ChunkWatch(
                    chunk, recorded.seq, recorded.time, recorded.time
                )
                job.moved_at = max(job.moved_at, recorded.time)
            return
        if recorded.seq <= watch.seq:
            return
        watch.chunk = chunk_rules.evolve(watch.chunk, recorded)
        watch.seq, watch.changed_at = recorded.seq, recorded.time
        if isinstance(event, ChunkLeased):
            watch.leased_seq, watch.moved_at = recorded.seq, recorded.time
        elif isinstance(event, ChunkProgressed | ChunkCompleted):
            watch.moved_at, watch.rounds = recorded.time, 0
            job.moved_at, job.told = max(job.moved_at, recorded.time), None
            model = watch.chunk.planned.model
            before = self.model_moved_at.get(model, recorded.time)
            self.model_moved_at[model] = max(before, recorded.time)


async def load(store: EventStore) -> OpenJobs:
    """Return the open jobs as the log has them now.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    every = OpenJobs()
    async for batch in store.read(subjects.ALL_JOBS):
        for recorded in batch:
            every.apply(recorded)
    jobs = OpenJobs()
    for job_id in every.jobs:
        events: list[Recorded] = []
        for subject in (subjects.job(job_id), subjects.chunks_of(job_id)):
            async for batch in store.read(subject):
                events.extend(batch)
        for recorded in sorted(events, key=lambda recorded: recorded.seq):
            jobs.apply(recorded)
    return jobs
