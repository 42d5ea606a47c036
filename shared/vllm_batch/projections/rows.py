"""What the read models hold: one struct per row, whatever store it comes from. Times in Unix
seconds."""

from __future__ import annotations

from typing import Literal

import msgspec

from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import LineError, Usage
from vllm_batch.ids import FileId, JobId, KeyId, ProjectId, WorkerId


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as clients see it. ``seq`` is the sequence of its submission: the total order of
    lists."""

    seq: int
    job_id: JobId
    project: ProjectId
    status: JobStatus
    endpoint: str
    input_file_id: FileId
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    model: str | None = None
    errors: list[LineError] | None = None
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage | None = None


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """A file. ``seq`` is the sequence of its creation: the total order of lists. Lists and look-ups
    only give files that are there, whose ``deleted_at`` is None."""

    seq: int
    file_id: FileId
    project: ProjectId
    filename: str
    purpose: str
    bytes: int
    lines: int
    blob: str
    created_at: int
    expires_at: int | None = None
    deleted_at: int | None = None


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that some worker has announced."""

    name: str
    created_at: int


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk. ``worker_id`` is who leased it last; counts and tokens are totals so far."""

    job_id: JobId
    chunk: int
    status: ChunkStatus
    model: str
    count: int
    epoch: int = 0
    worker_id: WorkerId | None = None
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class ApiKeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """An API key; ``revoked_at`` is set once it opens nothing any more."""

    seq: int
    key_id: KeyId
    project: ProjectId
    name: str
    prefix: str
    sha256: str
    created_at: int
    revoked_at: int | None = None


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's process, alive or not."""

    seq: int
    worker_id: WorkerId
    name: str
    host: str
    pid: int
    engine: str
    version: str
    status: Literal["started", "ready", "stopped", "lost"]
    models: list[str]
    in_flight_max: int
    started_at: int
    ended_at: int | None = None
    reason: str | None = None
