"""The batches that have not ended, folded from events: progress, queues, what is stuck.

Holds chunks of open batches only, so memory goes with the work in hand, not with history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from vllm_batch.event_store import EventStore
from vllm_batch.events import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    ChunkReleased,
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobStarted,
    JobStuck,
    JobSubmitted,
    Recorded,
)
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

_ENDED = (JobCompleted, JobCancelled, JobExpired, JobFailed)


@dataclass(slots=True)
class OpenChunk:
    """A chunk of an open batch. ``done``: requests with a result, ``failed`` of them with an
    error."""

    model: str
    count: int
    done: int = 0
    failed: int = 0
    leased: bool = False
    closed: bool = False


@dataclass(slots=True)
class OpenBatch:
    """A batch on its way. ``total`` is 0 until it is planned."""

    job_id: JobId
    project: str
    submitted_at: datetime
    model: str = ""
    total: int = 0
    started_at: datetime | None = None
    stuck: str = ""
    chunks: dict[int, OpenChunk] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Requests with a result."""
        return sum(chunk.done for chunk in self.chunks.values())

    @property
    def failed(self) -> int:
        """Requests whose result is an error."""
        return sum(chunk.failed for chunk in self.chunks.values())

    def eta_seconds(self, now: datetime) -> float | None:
        """Return how long the rest takes at the mean pace so far; None: nobody can say yet."""
        done = self.done
        if self.started_at is None or not done:
            return None
        elapsed = max(0.001, (now - self.started_at).total_seconds())
        return (self.total - done) * elapsed / done


@dataclass(slots=True)
class Queue:
    """Open work of one model: requests without a result, chunks by what they wait for."""

    requests: int = 0
    ready: int = 0
    leased: int = 0


class OpenBatches:
    """All open batches by id, the oldest first."""

    def __init__(self) -> None:
        self.batches: dict[JobId, OpenBatch] = {}

    async def load(self, store: EventStore) -> None:
        """Take in what the log has. Raises EventStoreUnavailable."""
        await self._read(store, subjects.ALL_JOBS)
        for job_id in list(self.batches):
            await self._read(store, subjects.chunks_of(job_id))

    def queues(self) -> dict[str, Queue]:
        """Return the open work by model."""
        found: dict[str, Queue] = {}
        for batch in self.batches.values():
            for chunk in batch.chunks.values():
                if chunk.closed or chunk.done >= chunk.count:
                    continue
                queue = found.setdefault(chunk.model, Queue())
                queue.requests += chunk.count - chunk.done
                if chunk.leased:
                    queue.leased += 1
                else:
                    queue.ready += 1
        return dict(sorted(found.items()))

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; doing so again changes nothing that lasts."""
        event = recorded.event
        if isinstance(event, JobSubmitted):
            self.batches[event.job_id] = OpenBatch(event.job_id, event.project, recorded.time)
            return
        batch = self.batches.get(getattr(event, "job_id", JobId("")))
        if batch is None:
            return
        match event:
            case JobStarted(total=total, model=model):
                batch.total, batch.model, batch.started_at = total, model, recorded.time
            case JobStuck(detail=detail):
                batch.stuck = detail
            case ChunkPlanned(chunk=number, model=model, count=count):
                batch.chunks.setdefault(number, OpenChunk(model, count))
            case _ if isinstance(event, _ENDED):
                del self.batches[batch.job_id]
            case _:
                self._apply_to_chunk(batch, recorded)

    def _apply_to_chunk(self, batch: OpenBatch, recorded: Recorded) -> None:
        event = recorded.event
        chunk = batch.chunks.get(getattr(event, "chunk", -1))
        if chunk is None:
            return
        match event:
            case ChunkLeased():
                chunk.leased = True
            case ChunkProgressed(completed=completed, failed=failed):
                chunk.done, chunk.failed = completed + failed, failed
                batch.stuck = ""
            case ChunkCompleted(completed=completed, failed=failed):
                chunk.done, chunk.failed, chunk.leased = completed + failed, failed, False
                batch.stuck = ""
            case ChunkReleased():
                chunk.leased = False
            case ChunkClosed():
                chunk.closed = True

    async def _read(self, store: EventStore, subject: str) -> None:
        async for batch in store.read(subject):
            for recorded in batch:
                self.apply(recorded)
