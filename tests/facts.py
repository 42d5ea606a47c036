"""Events as the services would append them, for tests of what reads the log."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from vllm_batch.errors import Conflict
from vllm_batch.event_store import EventStore
from vllm_batch.events import (
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    ChunkReleased,
    Effort,
    Event,
    FileUploaded,
    JobCancelled,
    JobCompleted,
    JobStarted,
    JobSubmitted,
    Recorded,
    Segment,
    Usage,
)
from vllm_batch.ids import FileId, JobId, ProjectId, WorkerId
from vllm_batch.messaging import subjects

PROJECT = ProjectId("default")
START = datetime(2026, 1, 2, 3, 4, 5, 900_000, UTC)
CREATED = int(START.timestamp())
NO_EFFORT = Effort()


async def append(store: EventStore, *events: Event) -> list[Recorded]:
    """Append as if every aggregate were at the right place."""
    recorded = []
    for event in events:
        while True:
            last = 0
            async for batch in store.read(subjects.of_aggregate(event)):
                last = batch[-1].seq
            with suppress(Conflict):  # a service wrote meanwhile
                recorded.append(await store.append(event, expected=last))
                break
    return recorded


def submitted(job: str, *, project: str = PROJECT, metadata: dict[str, str] | None = None) -> Event:
    return JobSubmitted(
        job_id=JobId(job),
        project=ProjectId(project),
        input_file_id=FileId("file-in"),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        expires_at=CREATED + 86_400,
        metadata=metadata,
    )


def uploaded(file: str, *, purpose: str = "batch", filename: str = "in.jsonl") -> FileUploaded:
    return FileUploaded(
        file_id=FileId(file),
        project=PROJECT,
        filename=filename,
        purpose=purpose,
        bytes=10,
        sha256="0" * 64,
        lines=1,
        blob=f"files/{file}",
    )


def planned(job: str, chunk: int, count: int = 10) -> ChunkPlanned:
    return ChunkPlanned(
        job_id=JobId(job), chunk=chunk, blob="files/f", offset=0, length=10, first_line=1,
        count=count, endpoint="/v1/chat/completions", model="m",
    )  # fmt: skip


def leased(job: str, chunk: int, epoch: int = 1, worker: str = "w1") -> ChunkLeased:
    return ChunkLeased(job_id=JobId(job), chunk=chunk, epoch=epoch, worker_id=WorkerId(worker))


def progressed(
    job: str, chunk: int, completed: int, failed: int = 0, effort: Effort = NO_EFFORT
) -> ChunkProgressed:
    return ChunkProgressed(
        job_id=JobId(job), chunk=chunk, epoch=1, worker_id=WorkerId("w1"),
        completed=completed, failed=failed, usage=Usage(completed * 5, 1, completed * 2, 0),
        segment=Segment("s", 1, completed, failed), effort=effort,
    )  # fmt: skip


def ended(job: str, cls: type[JobCompleted | JobCancelled] = JobCompleted) -> Event:
    return cls(
        job_id=JobId(job), total=20, completed=19, failed=1, usage=Usage(95, 2, 38, 0),
        output_file_id=FileId("file-out"), error_file_id=FileId("file-err"),
    )  # fmt: skip


async def run_a_batch(store: EventStore, job: str = "batch_1") -> None:
    await append(
        store,
        submitted(job, metadata={"z": "1", "a": "2"}),
        planned(job, 0),
        planned(job, 1),
        JobStarted(job_id=JobId(job), total=20, chunks=2, model="m"),
        leased(job, 0),
        progressed(job, 0, 4, 1),
        leased(job, 1, 1, "w2"),
        progressed(job, 1, 3),
        ChunkReleased(job_id=JobId(job), chunk=1, epoch=1, reason="worker_lost"),
        leased(job, 1, 2, "w3"),
    )
