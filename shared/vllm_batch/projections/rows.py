"""What the read models hold: one struct per row, whatever store it comes from. Times in Unix seconds."""

from __future__ import annotations

import msgspec

from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import LineError, Usage
from vllm_batch.ids import FileId, JobId, ProjectId


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as clients see it. ``seq`` is the sequence of its submission: the total order of lists."""

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
    """A file that is there. ``seq`` is the sequence of its creation: the total order of lists."""

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


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that some worker has announced."""

    name: str
    created_at: int
