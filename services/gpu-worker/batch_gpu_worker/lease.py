"""A chunk that this worker owns in the event log, and the only place that records anything of it.

Every append expects the chunk's last event as this worker knows it, so a lease that was taken away
cannot write: that is the fencing.
"""

from __future__ import annotations

from typing import Literal

from vllm_batch.aggregates import chunk as rules
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.errors import Conflict, LeaseLost
from vllm_batch.event_store.protocol import EventStore, fold
from vllm_batch.events import Effort, Segment, Usage
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.messaging import subjects

ReleaseReason = Literal["drained", "engine_failed", "cancelled", "expired", "error"]
_NO_EFFORT = Effort()


class Lease:
    """Ownership of one chunk under one epoch, and the chunk's position in the log."""

    def __init__(self, store: EventStore, chunk: Chunk, seq: int) -> None:
        self._store = store
        self._seq = seq
        self.chunk = chunk
        self.epoch = chunk.epoch

    @classmethod
    async def take(
        cls, store: EventStore, job_id: JobId, number: int, *, worker_id: WorkerId
    ) -> Lease:
        """Lease the chunk, or find the lease that was recorded before EventStoreUnavailable.

        Not for a chunk whose lease is in use: both would believe they are the only one.

        Raises:
            LeaseLost: somebody else has it, or it needs no more work.
            Rejected: there is no such chunk.
            EventStoreUnavailable: whether it was leased is unknown.
        """
        subject = subjects.chunk(job_id, number)
        state, seq = await fold(store, subject, rules.evolve)
        if state and state.status is ChunkStatus.LEASED and state.worker_id == worker_id:
            return cls(store, state, seq)
        event = rules.decide(state, rules.Lease(worker_id))
        try:
            recorded = await store.append(event, expected=seq)
        except Conflict as error:
            raise LeaseLost("somebody else was faster") from error
        return cls(store, rules.evolve(state, recorded), recorded.seq)

    async def check(self) -> None:
        """Look whether the epoch is still on, without changing anything.

        Raises:
            LeaseLost: it is over.
            EventStoreUnavailable: the log does not say.
        """
        planned = self.chunk.planned
        subject = subjects.chunk(planned.job_id, planned.chunk)
        state, _ = await fold(self._store, subject, rules.evolve)
        ours = {ChunkStatus.LEASED, ChunkStatus.COMPLETED}
        if state is None or state.epoch != self.epoch or state.status not in ours:
            raise LeaseLost(f"epoch {self.epoch} is over")

    async def record(self, segment: Segment, usage: Usage, effort: Effort = _NO_EFFORT) -> None:
        """Record a checkpoint; ``usage`` and ``effort`` are the segment's. Calling it again changes
        nothing.

        Raises:
            LeaseLost: the epoch is over.
            EventStoreUnavailable: whether it was recorded is unknown.
        """
        await self._append(rules.Record(self.epoch, segment, usage, effort))

    async def complete(
        self, segment: Segment | None, usage: Usage, effort: Effort = _NO_EFFORT
    ) -> None:
        """Record that every request has its result; raises as `record` does."""
        await self._append(rules.Complete(self.epoch, segment, usage, effort))

    async def release(self, reason: ReleaseReason, effort: Effort = _NO_EFFORT) -> None:
        """Give the chunk back; ``effort``: of what was aborted. Raises as `record` does."""
        await self._append(rules.Release(self.epoch, reason, effort))

    async def _append(self, command: rules.Record | rules.Complete | rules.Release) -> None:
        while not self._is_recorded(command):
            event = rules.decide(self.chunk, command)
            try:
                recorded = await self._store.append(event, expected=self._seq)
            except Conflict:
                planned = self.chunk.planned
                subject = subjects.chunk(planned.job_id, planned.chunk)
                state, self._seq = await fold(self._store, subject, rules.evolve)
                if state is None:
                    raise LeaseLost("the log no longer knows the chunk") from None
                self.chunk = state
                continue
            self.chunk = rules.evolve(self.chunk, recorded)
            self._seq = recorded.seq
            return

    def _is_recorded(self, command: rules.Record | rules.Complete | rules.Release) -> bool:
        """Tell whether an append whose acknowledgement was lost has happened after all.

        Only the owner of an epoch records or completes under it.
        """
        if self.chunk.epoch != self.epoch:
            return False
        match command:
            case rules.Record(_, segment):
                return any(known.blob == segment.blob for known in self.chunk.segments)
            case rules.Complete():
                return self.chunk.status is ChunkStatus.COMPLETED
            case rules.Release():
                return self.chunk.status is ChunkStatus.READY
