"""The chunks this worker holds, and which of their requests goes next.

Jobs take turns request by request, so a small one gets in beside a large one; within a job the
chunk that came first is worked off first. Pure bookkeeping, no I/O.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterator

import msgspec

from batch_gpu_worker.chunk_trace import ChunkTrace
from batch_gpu_worker.lease import Lease, ReleaseReason
from vllm_batch.events import Effort, Usage
from vllm_batch.ids import JobId
from vllm_batch.segments import Result


class HeldChunk:
    """A leased chunk: requests that wait, that run, and results that are not handed in yet."""

    def __init__(self, lease: Lease, lines: list[bytes], *, done: Collection[int] = ()) -> None:
        planned = lease.chunk.planned
        self.trace = ChunkTrace(planned)
        self.lease = lease
        self.job_id = planned.job_id
        self.number = planned.chunk
        self.endpoint = planned.endpoint
        self.model = planned.model
        self.renamed = planned.model if planned.alias is not None else None
        """The model's name, where the requests ask for it by an alias."""
        self.waiting = deque((i, line) for i, line in enumerate(lines) if i not in done)
        self.running: set[asyncio.Task[None]] = set()
        self.results: list[Result] = []
        self.usage = Usage()
        self.effort = Effort()
        """What answering took since the last time that something was handed in."""
        self.unanswered = len(self.waiting)
        self.segments_written = 0
        self.ending: ReleaseReason | None = None
        self.gone = False

    @property
    def over(self) -> bool:
        """Whether no more results are wanted."""
        return self.gone or self.ending is not None

    @property
    def due(self) -> bool:
        """Whether it only waits to be handed in."""
        return self.ending is not None or self.unanswered == 0

    def add(self, result: Result, usage: Usage) -> None:
        """Keep a result until it is handed in."""
        self.results.append(result)
        self.usage += usage
        self.unanswered -= 1


class Request(msgspec.Struct, frozen=True, gc=False):
    """A line of a chunk that is to be answered."""

    chunk: HeldChunk
    index: int
    line: bytes


class Holdings:
    """Every chunk held. ``waiting`` counts the requests that did not begin yet."""

    def __init__(self) -> None:
        self.waiting = 0
        self._chunks: dict[tuple[JobId, int], HeldChunk] = {}
        self._queues: dict[JobId, deque[HeldChunk]] = {}
        self._turns: deque[JobId] = deque()

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, chunk: tuple[JobId, int]) -> bool:
        return chunk in self._chunks

    def find(self, chunk: tuple[JobId, int]) -> HeldChunk | None:
        """Return a chunk by its job and number, if it is held."""
        return self._chunks.get(chunk)

    def __iter__(self) -> Iterator[HeldChunk]:
        return iter(tuple(self._chunks.values()))

    def add(self, chunk: HeldChunk) -> None:
        """Hold a chunk; its requests line up behind those of the same job."""
        self._chunks[chunk.job_id, chunk.number] = chunk
        if not chunk.waiting:
            return
        self.waiting += len(chunk.waiting)
        queue = self._queues.get(chunk.job_id)
        if queue is None:
            queue = self._queues[chunk.job_id] = deque()
            self._turns.appendleft(chunk.job_id)  # a job that just came has waited longest
        queue.append(chunk)

    def remove(self, chunk: HeldChunk) -> None:
        """Forget a chunk that is handed in, given back or lost."""
        self.drop_waiting(chunk)
        self._chunks.pop((chunk.job_id, chunk.number), None)

    def drop_waiting(self, chunk: HeldChunk) -> None:
        """Begin no more of the chunk's requests."""
        if not chunk.waiting:
            return
        self.waiting -= len(chunk.waiting)
        chunk.waiting.clear()
        self._leave_queue(chunk)

    def take(self) -> Request | None:
        """Return the next request, None if none waits."""
        if not self._turns:
            return None
        job_id = self._turns[0]
        self._turns.rotate(-1)
        chunk = self._queues[job_id][0]
        index, line = chunk.waiting.popleft()
        self.waiting -= 1
        if not chunk.waiting:
            self._leave_queue(chunk)
        return Request(chunk, index, line)

    def of_job(self, job_id: JobId) -> list[HeldChunk]:
        """Return the chunks held of one job."""
        return [chunk for chunk in self._chunks.values() if chunk.job_id == job_id]

    def _leave_queue(self, chunk: HeldChunk) -> None:
        queue = self._queues[chunk.job_id]
        queue.remove(chunk)
        if not queue:
            del self._queues[chunk.job_id]
            self._turns.remove(chunk.job_id)
