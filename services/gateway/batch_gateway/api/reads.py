"""Reading what is known of files and batches: from the log for one, from Postgres for many.

One file or one batch is folded from its own few events, so it is never older than the last write,
on every replica, and Postgres may be away; where it is the log that is away, the read models
answer. Lists, and how far a running batch is, come from the read models; without them the counts
are folded from the events of the batch's chunks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, TypeVar

import msgspec

from batch_gateway.api.errors import shown
from vllm_batch import ids
from vllm_batch.aggregates import job as rules
from vllm_batch.aggregates.job import Job, JobStatus
from vllm_batch.clock import Clock
from vllm_batch.errors import EventStoreUnavailable, NotFound, ProjectionUnavailable
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import Recorded
from vllm_batch.ids import FileId, JobId, ProjectId
from vllm_batch.messaging import subjects
from vllm_batch.projections import files, from_log, jobs
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.projections.rows import BatchRow, FileRow, ModelRow
from vllm_batch.projections.waiting import WaitingRow
from vllm_batch.settings import Settings

REMEMBERED_JOBS_MAX = 10_000
LOG_SECONDS = 2.5
COUNTS_SECONDS = 0.25

State = TypeVar("State")


class Counts(NamedTuple):
    """How many requests of a batch have a result."""

    completed: int
    failed: int


class JobAndRow(NamedTuple):
    """A job twice: as the rules see it and as clients do, up to event ``seq``."""

    job: Job
    row: BatchRow
    seq: int


class Reads:
    """Answers questions; writes nothing."""

    def __init__(
        self, store: EventStore, read_models: ReadModels, settings: Settings, clock: Clock
    ) -> None:
        self.lists = read_models
        self._store = store
        self._settings = settings
        self._clock = clock
        self._shown_seq = 0
        self._shown_counts: OrderedDict[JobId, Counts] = OrderedDict()

    async def catch_up(self, seq: int = 0) -> bool:
        """Wait until the read models hold ``seq`` and all that this process has ever shown.

        Returns False where that took too long or Postgres is away.
        """
        self._shown_seq = max(self._shown_seq, seq)
        return await self.lists.wait_for(self._shown_seq, self._settings.read_your_writes_seconds)

    async def fresh_lists(self) -> ReadModels:
        """Return the read models once they hold everything that this process has ever shown.

        A list without what its reader has just created would look complete, and is worse than none.

        Raises:
            ProjectionUnavailable: they are away, or behind for too long.
        """
        if not await self.catch_up():
            raise ProjectionUnavailable("the read models are away or behind")
        return self.lists

    async def file(self, project: ProjectId, file_id: str) -> FileRow:
        """Return a file of ``project``.

        Raises:
            NotFound: no such file, or it is another project's, deleted or expired.
            EventStoreUnavailable: the log does not answer.
        """
        try:
            row, _ = await self.file_and_sequence(project, file_id)
        except EventStoreUnavailable:
            found = await self._file_in_postgres(project, file_id)
            if found is None:
                raise
            row = found
        return row

    async def _file_in_postgres(self, project: ProjectId, file_id: str) -> FileRow | None:
        with suppress(ProjectionUnavailable):
            row = await self.lists.file(project, FileId(file_id))
            if row is not None and not self._is_gone(row):
                return row
        return None

    async def file_and_sequence(self, project: ProjectId, file_id: str) -> tuple[FileRow, int]:
        """Return a file and its last sequence, for who wants to append to it; see `file`."""
        row: FileRow | None = None
        seq = 0
        if ids.is_token(file_id):
            subject = subjects.aggregate("file", file_id)
            row, seq = await self.fold(subject, files.evolve)
        if row is None or row.project != project or self._is_gone(row):
            raise NotFound(f"No such File object: {shown(file_id)}")
        return row, seq

    def _is_gone(self, row: FileRow) -> bool:
        if row.deleted_at is not None:
            return True
        return row.expires_at is not None and row.expires_at <= self._clock.now().timestamp()

    async def job(self, project: ProjectId, job_id: str) -> JobAndRow:
        """Return a job of ``project``.

        Raises:
            NotFound: no such job, or it is another project's.
            EventStoreUnavailable: the log does not answer.
        """
        found: JobAndRow | None = None
        if ids.is_token(job_id):
            found, _ = await self.fold(subjects.job(JobId(job_id)), evolve_job)
        if found is None or found.row.project != project or found.job.retired:
            raise NotFound(f"No such Batch object: {shown(job_id)}")
        self._shown_seq = max(self._shown_seq, found.seq)
        return found

    async def batch(self, project: ProjectId, job_id: str) -> BatchRow:
        """Return a batch as clients see it; raises what `job` raises."""
        try:
            found = await self.job(project, job_id)
        except EventStoreUnavailable:
            with suppress(ProjectionUnavailable):
                row = await self.lists.batch(project, JobId(job_id))
                if row is not None:
                    return row
            raise
        return await self.with_counts(found.row)

    async def fold(
        self, subject: str, evolve: Callable[[State | None, Recorded], State]
    ) -> tuple[State | None, int]:
        """Return an aggregate's state and last sequence, sooner than a client gives up waiting.

        Raises:
            EventStoreUnavailable: the log does not answer.
        """
        try:
            async with asyncio.timeout(LOG_SECONDS):
                return await fold(self._store, subject, evolve)
        except TimeoutError as error:
            raise EventStoreUnavailable(f"reading {subject} got no answer") from error

    async def with_counts(self, row: BatchRow) -> BatchRow:
        """Return ``row`` with how far the batch is, where its own events do not say."""
        if row.usage is not None or row.in_progress_at is None:
            return row
        counts = await self._counts(row)
        return msgspec.structs.replace(row, completed=counts.completed, failed=counts.failed)

    async def waiting(self, rows: Sequence[BatchRow]) -> dict[JobId, list[WaitingRow]]:
        """Return what running batches among ``rows`` wait for; nothing while Postgres is away."""
        running = [row.job_id for row in rows if row.status is JobStatus.RUNNING]
        if running:
            with suppress(ProjectionUnavailable):
                return await self.lists.waiting(running)
        return {}

    async def _counts(self, row: BatchRow) -> Counts:
        found = await self._counted_in_postgres(row)
        if found is None:
            chunks = await from_log.chunk_rows(self._store, row.job_id)
            counted = from_log.with_counts(row, chunks)
            counts = Counts(counted.completed, counted.failed)
            self._remember(row.job_id, counts)
            return counts
        # A database that came back may be behind what was shown meanwhile: counts only grow.
        shown_before = self._shown_counts.get(row.job_id, Counts(0, 0))
        return max(shown_before, Counts(found.completed, found.failed), key=sum)

    async def _counted_in_postgres(self, row: BatchRow) -> BatchRow | None:
        """Return the row with counts not older than the status: "finalizing" has them all."""
        if not await self.lists.wait_for(self._shown_seq, COUNTS_SECONDS):
            return None
        with suppress(ProjectionUnavailable):
            return await self.lists.batch(row.project, row.job_id)
        return None

    def _remember(self, job_id: JobId, counts: Counts) -> None:
        self._shown_counts[job_id] = counts
        self._shown_counts.move_to_end(job_id)
        if len(self._shown_counts) > REMEMBERED_JOBS_MAX:
            self._shown_counts.popitem(last=False)

    async def models(self) -> list[ModelRow]:
        """Return what may be asked for: models registered or ever announced, and aliases."""
        try:
            return await self.lists.models()
        except ProjectionUnavailable:
            return await from_log.models(self._store)


def evolve_job(state: JobAndRow | None, recorded: Recorded) -> JobAndRow:
    """Return the job after ``recorded``, both ways."""
    return JobAndRow(
        rules.evolve(state.job if state else None, recorded),
        jobs.evolve(state.row if state else None, recorded),
        recorded.seq,
    )


def unix(time: datetime) -> int:
    """Return whole Unix seconds."""
    return int(time.timestamp())
