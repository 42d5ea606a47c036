"""What the admin UI asks of the read models: every project's batches. Reads Postgres only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from vllm_batch.ids import JobId
from vllm_batch.postgres import queries
from vllm_batch.postgres.connection import Pool
from vllm_batch.projections.freshness import Freshness
from vllm_batch.projections.read_models import ReadModels, batch_of
from vllm_batch.projections.rows import AnnotationRow, BatchRow
from vllm_batch.projections.table import row_of

SORTS = frozenset({"created_at", "total", "failed", "status"})


@dataclass(frozen=True, kw_only=True)
class BatchFilter:
    """Which batches, in which order. Empty texts: any."""

    status: str = ""
    project: str = ""
    model: str = ""
    text: str = ""
    sort: str = "created_at"
    descending: bool = True


class LabelingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A labeling project that is not deleted, and how far it is. ``connected``: Label Studio
    delivers its events; ``accuracy``: of the newest measurement, in [0, 1]."""

    project: str
    title: str
    template: str | None
    model: str | None
    connected: bool
    tasks: int
    annotations: int
    pending: int
    validated: int
    flagged: int
    ground_truth: int
    accuracy: float | None


class AdminReads(ReadModels):
    """Questions that cross projects."""

    def __init__(self, pool: Pool, freshness: Freshness, answer_seconds: float) -> None:
        super().__init__(pool, freshness, answer_seconds)
        self._sql = {**self._sql, **queries.load("vllm_batch.projections", "admin_reads.sql")}

    async def find_batches(
        self, wanted: BatchFilter, *, limit: int, offset: int
    ) -> tuple[list[BatchRow], int]:
        """Return a page of the batches that ``wanted`` describes, and how many there are."""
        found = await self._fetch(
            "admin_batches",
            wanted.status,
            wanted.project,
            wanted.model,
            wanted.text,
            wanted.sort if wanted.sort in SORTS else "created_at",
            wanted.descending,
            limit,
            offset,
        )
        count = found[0]["found"] if found else 0
        return [batch_of(_without_count(record)) for record in found], count

    async def any_batch(self, job_id: JobId) -> BatchRow | None:
        """Return a batch of whatever project, or None."""
        found = await self._fetch("admin_batch", job_id)
        return batch_of(dict(found[0])) if found else None

    async def chunk_states(self, job_id: JobId) -> str:
        """Return a letter per chunk of a batch, in their order: r(eady), l(eased), c(ompleted),
        f (completed, with failures), x (closed)."""
        found = await self._fetch("admin_chunk_states", job_id)
        return str(found[0]["states"])

    async def choices(self) -> tuple[list[str], list[str]]:
        """Return the projects and the models that batches have."""
        record: Any = (await self._fetch("admin_choices"))[0]
        return list(record["projects"]), list(record["models"])

    async def labeling_projects(self) -> list[LabelingSummary]:
        """Return the labeling projects, the oldest first."""
        return await self._rows(LabelingSummary, "admin_labeling_projects")

    async def flagged(self, project: str, limit: int) -> list[AnnotationRow]:
        """Return the annotations that a person should look at, the newest first."""
        found = await self._fetch("admin_flagged", project, limit)
        return [row_of(AnnotationRow, record) for record in found]

    async def annotation_pace(
        self, project: str, since: int, step_seconds: int
    ) -> list[tuple[int, int]]:
        """Return (start of the step in Unix seconds, annotations handed in) since ``since``."""
        found = await self._fetch("admin_annotation_pace", project, since, step_seconds)
        return [(record["step"], record["annotations"]) for record in found]


def _without_count(record: asyncpg.Record) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "found"}
