"""Events of a file."""

from __future__ import annotations

from typing import ClassVar, Literal

from vllm_batch.events.base import Event
from vllm_batch.ids import FileId, JobId, KeyId, ProjectId


class _FileEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("file_id",)

    file_id: FileId


class FileUploaded(_FileEvent, frozen=True, kw_only=True):
    """A user's file is stored. ``lines`` counts newline-ended and last lines; times in Unix
    seconds."""

    TYPE: ClassVar[str] = "file.uploaded"

    project: ProjectId
    key_id: KeyId | None = None
    filename: str
    purpose: str
    bytes: int
    sha256: str
    lines: int
    blob: str
    expires_at: int | None = None


class FileCreated(_FileEvent, frozen=True, kw_only=True):
    """The system wrote a file: a job's output or error file."""

    TYPE: ClassVar[str] = "file.created"

    project: ProjectId
    job_id: JobId
    filename: str
    purpose: str
    bytes: int
    lines: int
    blob: str
    expires_at: int | None = None


class FileDeleted(_FileEvent, frozen=True, kw_only=True):
    """The file is gone: deleted by its owner, or its time was up."""

    TYPE: ClassVar[str] = "file.deleted"

    reason: Literal["requested", "expired"]


FileEvent = FileUploaded | FileCreated | FileDeleted
