"""Single objects straight from the event log, for when Postgres is away or behind.

Costs one read per aggregate (and one over its chunks for a running job), so it is for look-ups by
id, never for lists; only models are few enough. Gives the very rows the read models would.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from vllm_batch import model_registry
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import Usage, WorkerReady
from vllm_batch.ids import FileId, JobId, ProjectId
from vllm_batch.messaging import subjects
from vllm_batch.projections import chunks, files, jobs
from vllm_batch.projections.rows import BatchRow, ChunkRow, FileRow, ModelRow


async def batch(store: EventStore, project: ProjectId, job_id: JobId) -> BatchRow | None:
    """Return a project's batch as the log has it now, or None.

    Raises:
        EventStoreUnavailable: no answer in time.
    """
    row, _ = await fold(store, subjects.job(job_id), jobs.evolve)
    if row is None or row.project != project or row.retired_at is not None:
        return None
    if row.usage is not None or row.in_progress_at is None:
        return row
    return with_counts(row, await chunk_rows(store, job_id))


async def chunk_rows(store: EventStore, job_id: JobId) -> list[ChunkRow]:
    """Return a job's chunks as the log has them now."""
    rows: dict[int, ChunkRow] = {}
    async for recorded_batch in store.read(subjects.chunks_of(job_id)):
        for recorded in recorded_batch:
            row = chunks.evolve(rows.get(chunks.number(recorded.event)), recorded)
            rows[row.chunk] = row
    return list(rows.values())


def with_counts(row: BatchRow, parts: list[ChunkRow]) -> BatchRow:
    """Return a running batch's row with the sums over its chunks."""
    return msgspec.structs.replace(
        row,
        completed=sum(part.completed for part in parts),
        failed=sum(part.failed for part in parts),
        usage=Usage(
            sum(part.input_tokens for part in parts),
            sum(part.cached_tokens for part in parts),
            sum(part.output_tokens for part in parts),
            sum(part.reasoning_tokens for part in parts),
        ),
    )


async def file(store: EventStore, project: ProjectId, file_id: FileId) -> FileRow | None:
    """Return a project's file as the log has it now; None if it is not there or was deleted.

    Raises:
        EventStoreUnavailable: no answer in time.
    """
    row, _ = await fold(store, subjects.aggregate("file", file_id), files.evolve)
    if row is None or row.project != project or row.deleted_at is not None:
        return None
    return row


async def models(store: EventStore) -> list[ModelRow]:
    """Return what may be asked for: models registered or ever announced, and aliases.

    Raises:
        EventStoreUnavailable: no answer in time.
    """
    registry = await model_registry.load(store)
    rows = [
        ModelRow(name=model.name, created_at=_unix(model.created_at), parent=model.base)
        for model in registry.all()
    ]
    for alias, name in registry.aliases().items():
        meant = registry.find(name)
        if meant is not None and registry.resolve(alias) == name:
            rows.append(ModelRow(name=alias, created_at=_unix(meant.created_at), root=name))
    announced: dict[str, ModelRow] = {}
    async for batch in store.read(subjects.every(WorkerReady)):
        for recorded in batch:
            if isinstance(event := recorded.event, WorkerReady):
                for name in event.models:
                    row = ModelRow(name=name, created_at=_unix(recorded.time))
                    announced.setdefault(name, row)
    rows += [
        row
        for name, row in announced.items()
        if registry.find(name) is None and registry.resolve(name) is None
    ]
    return sorted(rows, key=lambda row: (row.created_at, row.name))


def _unix(time: datetime) -> int:
    return int(time.timestamp())
