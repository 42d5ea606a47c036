"""Judges a recorded history: would the rules have allowed every event, where it stands?

Each event is taken back to the command it must have come from, and that command is decided anew on
the state before it. An event that the rules would have refused, or decided otherwise, was written
by somebody who had no right to: a zombie, or a bug.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import Chunk
from vllm_batch.aggregates.job import Job
from vllm_batch.errors import Rejected
from vllm_batch.events import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    ChunkReleased,
    Effort,
    Event,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobFinalizing,
    JobRetired,
    JobStarted,
    JobStuck,
    JobSubmitted,
    JobWindowClosed,
    Recorded,
    Usage,
    WorkerLost,
)
from vllm_batch.ids import JobId

ChunkName = tuple[JobId, int]

_BARE_COMMANDS: dict[type[Event], job_rules.Command] = {
    JobCancelRequested: job_rules.Cancel(),
    JobWindowClosed: job_rules.CloseWindow(),
    JobFinalizing: job_rules.Finalize(),
    JobRetired: job_rules.Retire(),
}


class History:
    """All jobs and chunks of a log, and what is wrong with how they came to be."""

    def __init__(self) -> None:
        self.jobs: dict[JobId, Job] = {}
        self.chunks: dict[ChunkName, Chunk] = {}
        self.violations: list[str] = []
        self.lost_alive: set[int] = set()
        """Sequences of the `worker.lost` of workers that were heard of again."""
        self._lost: dict[str, int] = {}

    def replay(self, log: Iterable[Recorded]) -> None:
        """Take in ``log``, in its order."""
        for recorded in log:
            if isinstance(recorded.event, WorkerLost):
                self._lost[recorded.event.worker_id] = recorded.seq
            elif (lost := self._lost.pop(recorded.source, None)) is not None:
                self.lost_alive.add(lost)
            noun = recorded.event.TYPE.partition(".")[0]
            if noun == "chunk":
                self._chunk(recorded)
            elif noun == "job":
                self._job(recorded)

    def chunks_of(self, job_id: JobId) -> list[Chunk]:
        """Return a job's chunks in the order of its lines."""
        return [self.chunks[name] for name in sorted(self.chunks) if name[0] == job_id]

    def _chunk(self, recorded: Recorded) -> None:
        event = recorded.event
        job, number = event.aggregate_id()
        name = (JobId(job), int(number))
        before = self.chunks.get(name)
        try:
            allowed = chunk_rules.decide(before, chunk_command(before, event))
            if allowed != event:
                self._wrong(recorded, f"the rules would have said {allowed}")
        except Rejected as error:
            self._wrong(recorded, f"{error.code}: {error}")
        try:
            self.chunks[name] = chunk_rules.evolve(before, recorded)
        except Rejected as error:
            self._wrong(recorded, str(error))

    def _job(self, recorded: Recorded) -> None:
        event = recorded.event
        job_id = JobId(event.aggregate_id()[0])
        before = self.jobs.get(job_id)
        try:
            allowed = job_rules.decide(before, job_command(event))
            if allowed != event:
                self._wrong(recorded, f"the rules would have said {allowed}")
        except Rejected as error:
            self._wrong(recorded, f"{error.code}: {error}")
        if isinstance(event, JobStarted | JobFinalizing):
            self._chunks_at(recorded, job_id)
        if isinstance(event, JobCompleted | JobExpired | JobCancelled):
            self._counts_at_the_end(recorded, event)
        try:
            self.jobs[job_id] = job_rules.evolve(before, recorded)
        except Rejected as error:
            self._wrong(recorded, str(error))

    def _chunks_at(self, recorded: Recorded, job_id: JobId) -> None:
        chunks = self.chunks_of(job_id)
        if isinstance(recorded.event, JobStarted):
            planned = (len(chunks), sum(chunk.planned.count for chunk in chunks))
            if planned != (recorded.event.chunks, recorded.event.total):
                self._wrong(recorded, f"planned are {planned} (chunks, requests)")
            lines = [(c.planned.offset, c.planned.length) for c in chunks]
            if any(a + n != b for (a, n), (b, _) in pairwise(lines)):
                self._wrong(recorded, f"the chunks do not follow each other: {lines}")
        elif open_chunks := [c.planned.chunk for c in chunks if not c.terminal]:
            self._wrong(recorded, f"chunks {open_chunks} had not ended")

    def _counts_at_the_end(
        self, recorded: Recorded, event: JobCompleted | JobExpired | JobCancelled
    ) -> None:
        chunks = self.chunks_of(event.job_id)
        usage = sum((chunk.usage for chunk in chunks), Usage())
        given_up = sum(chunk.remaining for chunk in chunks if chunk.closed == "stuck")
        failed = sum(chunk.failed for chunk in chunks) + given_up
        counted = (sum(chunk.completed for chunk in chunks), failed, usage)
        if counted != (event.completed, event.failed, event.usage):
            self._wrong(recorded, f"its chunks add up to {counted}")
        if isinstance(event, JobCompleted) and event.completed + event.failed != event.total:
            self._wrong(recorded, "completed + failed is not total")

    def _wrong(self, recorded: Recorded, why: str) -> None:
        event = recorded.event
        name = "/".join(event.aggregate_id())
        self.violations.append(f"event {recorded.seq} {event.TYPE} of {name}: {why}")


def chunk_command(before: Chunk | None, event: Event) -> chunk_rules.Command:
    """Return the command that ``event`` must have come from."""
    used = before.usage if before else Usage()
    took = before.effort if before else Effort()
    match event:
        case ChunkPlanned():
            return chunk_rules.Plan(event)
        case ChunkLeased():
            return chunk_rules.Lease(event.worker_id)
        case ChunkProgressed():
            return chunk_rules.Record(
                event.epoch, event.segment, minus(event.usage, used), less(event.effort, took)
            )
        case ChunkCompleted():
            return chunk_rules.Complete(
                event.epoch, event.segment, minus(event.usage, used), less(event.effort, took)
            )
        case ChunkReleased():
            aborted = Effort() if event.effort is None else less(event.effort, took)
            return chunk_rules.Release(event.epoch, event.reason, aborted)
        case ChunkClosed():
            return chunk_rules.Close(event.reason)
    raise AssertionError(f"{event.TYPE} is none of a chunk's events")


def job_command(event: Event) -> job_rules.Command:
    """Return the command that ``event`` must have come from."""
    if command := _BARE_COMMANDS.get(type(event)):
        return command
    match event:
        case JobSubmitted():
            return job_rules.Submit(event)
        case JobStarted():
            return job_rules.Start(event.total, event.chunks, event.model)
        case JobFailed():
            return job_rules.Fail(event.errors, event.error_count)
        case JobStuck():
            return job_rules.NoteStuck(
                reason=event.reason,
                detail=event.detail,
                idle_seconds=event.idle_seconds,
                chunks=event.chunks,
            )
        case JobCompleted() | JobExpired() | JobCancelled():
            return job_rules.Finish(
                total=event.total,
                completed=event.completed,
                failed=event.failed,
                usage=event.usage,
                output_file_id=event.output_file_id,
                error_file_id=event.error_file_id,
            )
    raise AssertionError(f"{event.TYPE} is none of a job's events")


def minus(total: Usage, before: Usage) -> Usage:
    """Return what was added to ``before``."""
    return Usage(
        total.input_tokens - before.input_tokens,
        total.cached_tokens - before.cached_tokens,
        total.output_tokens - before.output_tokens,
        total.reasoning_tokens - before.reasoning_tokens,
    )


def less(total: Effort, before: Effort) -> Effort:
    """Return what was added to ``before``."""
    return Effort(
        total.engine_seconds - before.engine_seconds,
        total.gpu_seconds - before.gpu_seconds,
        total.energy_joules - before.energy_joules,
    )
