"""What the API and the CLI ask of the read models. Reads Postgres, writes nothing.

Every question is answered or refused (`ProjectionUnavailable`) within a second; Postgres need not
be there when a process starts, and may come and go while it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Self, TypeVar

import asyncpg
import msgspec
import structlog

from vllm_batch import tasks
from vllm_batch.errors import NotFound, ProjectionUnavailable
from vllm_batch.events import Usage
from vllm_batch.ids import FileId, JobId, ProjectId
from vllm_batch.postgres import queries
from vllm_batch.postgres.connection import AWAY, CLOSE_SECONDS, NOT_FILLED, Pool, arguments, prepare
from vllm_batch.projections.freshness import Freshness
from vllm_batch.projections.rows import (
    ApiKeyRow,
    BatchRow,
    BatchUsageRow,
    FileRow,
    ModelRow,
    ProjectUse,
    UsageRow,
    WorkerRow,
)
from vllm_batch.projections.table import row_of
from vllm_batch.projections.waiting import WaitingRow
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

Row = TypeVar("Row", bound=msgspec.Struct)

COMMAND_ANSWER_SECONDS = 60.0
CONNECTIONS_MAX = 8
SEQ_MAX = 2**63 - 1


class ReadModels:
    """Questions to the read models; see `connect`."""

    def __init__(self, pool: Pool, freshness: Freshness, answer_seconds: float) -> None:
        self._pool = pool
        self._freshness = freshness
        self._answer_seconds = answer_seconds
        self._sql = queries.load("vllm_batch.projections", "read_models.sql")

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, settings: Settings, *, answer_seconds: float | None = None
    ) -> AsyncIterator[Self]:
        """Yield the read models, whether or not Postgres is there now.

        ``answer_seconds``: longest wait for the first connection and for each answer; None: the
        setting. Commands are more patient than servers: COMMAND_ANSWER_SECONDS.
        """
        seconds = answer_seconds or settings.read_models_answer_seconds
        freshness = Freshness(settings)
        listening = asyncio.create_task(freshness.run(), name="read models: freshness")
        pool = asyncpg.create_pool(
            **arguments(settings), min_size=0, max_size=CONNECTIONS_MAX, init=prepare
        )
        await pool  # opens nothing yet: min_size is 0
        try:
            await freshness.wait_first_try(seconds)
            yield cls(pool, freshness, seconds)
        finally:
            await tasks.end(listening)
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await pool.close()
            except AWAY:
                pool.terminate()

    @property
    def available(self) -> bool:
        """Whether Postgres answers and the read models are there."""
        return self._freshness.up

    @property
    def seq(self) -> int:
        """The sequence the read models have reached; -1 while they are away."""
        return self._freshness.seq

    async def wait_for(self, seq: int, timeout_seconds: float) -> bool:
        """Wait until event ``seq`` shows in the rows.

        Returns False when it takes longer, and at once when Postgres is away.
        """
        return await self._freshness.wait_for(seq, timeout_seconds)

    async def batch(self, project: ProjectId, job_id: JobId) -> BatchRow | None:
        """Return a project's batch, or None."""
        found = await self._fetch("batch", project, job_id)
        return batch_of(found[0]) if found else None

    async def batches(
        self, project: ProjectId, *, limit: int, after: JobId | None = None
    ) -> tuple[list[BatchRow], bool]:
        """Return up to ``limit`` batches, newest first, and whether there are more.

        Raises:
            NotFound: ``after`` is no batch of the project.
        """
        before = SEQ_MAX if after is None else await self._seq_of("batch_seq", project, after)
        found = await self._fetch("batches", project, before, limit + 1)
        return [batch_of(record) for record in found[:limit]], len(found) > limit

    async def waiting(self, job_ids: Sequence[JobId]) -> dict[JobId, list[WaitingRow]]:
        """Return the models that running batches wait for because no worker serves them."""
        found: dict[JobId, list[WaitingRow]] = {}
        for record in await self._fetch("waiting", job_ids):
            row = row_of(WaitingRow, record)
            found.setdefault(row.job_id, []).append(row)
        return found

    async def file(self, project: ProjectId, file_id: FileId) -> FileRow | None:
        """Return a project's file; None if it is not there or was deleted."""
        found = await self._fetch("file", project, file_id)
        return row_of(FileRow, found[0]) if found else None

    async def files(
        self,
        project: ProjectId,
        *,
        purpose: str | None = None,
        limit: int,
        order: Literal["asc", "desc"] = "desc",
        after: FileId | None = None,
    ) -> tuple[list[FileRow], bool]:
        """Return up to ``limit`` files in the order they were made, and whether there are more.

        Raises:
            NotFound: ``after`` was never a file of the project.
        """
        start = SEQ_MAX if order == "desc" else 0
        if after is not None:
            start = await self._seq_of("file_seq", project, after)
        name = "files_newest_first" if order == "desc" else "files_oldest_first"
        found = await self._fetch(name, project, purpose, start, limit + 1)
        return [row_of(FileRow, record) for record in found[:limit]], len(found) > limit

    async def models(self) -> list[ModelRow]:
        """Return every model that is registered or was ever announced, and every alias, the
        oldest first."""
        return await self._rows(ModelRow, "models")

    async def workers(self) -> list[WorkerRow]:
        """Return every worker process, the oldest first."""
        return await self._rows(WorkerRow, "workers")

    async def api_keys(self) -> list[ApiKeyRow]:
        """Return every API key, revoked ones too, the oldest first."""
        return await self._rows(ApiKeyRow, "api_keys")

    async def project_use(self, project: ProjectId) -> ProjectUse:
        """Return what a project has now."""
        return row_of(ProjectUse, (await self._fetch("project_use", project))[0])

    async def usage(
        self,
        since: int,
        until: int,
        project: ProjectId | None = None,
        *,
        by_batch: bool = False,
    ) -> list[UsageRow]:
        """Return what was used in [since, until) (Unix seconds), by day, project, key and model,
        and by batch where that is asked for."""
        found = await self._fetch("usage", since, until, project, by_batch)
        return [row_of(UsageRow, record) for record in found]

    async def batch_usage(self, job_ids: Sequence[JobId]) -> list[BatchUsageRow]:
        """Return what each batch has used, by model."""
        found = await self._fetch("batch_usage", list(job_ids))
        return [row_of(BatchUsageRow, record) for record in found]

    async def input_in_use(self, file_id: FileId) -> bool:
        """Tell whether a batch that has not ended reads this file."""
        found = await self._fetch("input_in_use", file_id)
        return bool(found[0][0])

    async def _rows(self, cls: type[Row], query: str) -> list[Row]:
        return [row_of(cls, record) for record in await self._fetch(query)]

    async def _seq_of(self, query: str, *key: str) -> int:
        found = await self._fetch(query, *key)
        if not found:
            raise NotFound(f"there is no {key[-1]!r} to continue after")
        return int(found[0]["seq"])

    async def _fetch(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """Ask one question.

        Raises:
            ProjectionUnavailable: Postgres is away, too slow, or not filled yet.
        """
        if not self._freshness.up:
            raise ProjectionUnavailable("the read models are away: Postgres does not answer")
        # A task of its own: giving a connection back to the pool can hang on a frozen server, and
        # the caller must not wait for that.
        asking = asyncio.create_task(self._pool.fetch(self._sql[query], *values))
        try:
            await asyncio.wait({asking}, timeout=self._answer_seconds)
        finally:
            if not asking.done():
                asking.cancel()
                asking.add_done_callback(_retrieve)
        if not asking.done():
            raise ProjectionUnavailable(
                f"the read models did not answer in {self._answer_seconds:g} s"
            )
        try:
            return asking.result()
        except (*AWAY, *NOT_FILLED) as error:
            raise ProjectionUnavailable(f"the read models are away: {error!r}") from error


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Take note of how an abandoned question ended, so that nothing complains about it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("abandoned question to the read models", error=repr(error))


def batch_of(record: asyncpg.Record | dict[str, Any]) -> BatchRow:
    """Return a batch with the sums over its chunks, where its end has not brought the counts."""
    values = dict(record)
    sums = {name: values.pop(f"sum_{name}") for name in _SUMS}
    row = msgspec.convert(values, BatchRow)
    if row.usage is not None or row.in_progress_at is None:
        return row
    return msgspec.structs.replace(
        row,
        completed=sums["completed"],
        failed=sums["failed"],
        usage=Usage(*(sums[name] for name in _SUMS[2:])),
    )


_SUMS = (
    "completed",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
)
