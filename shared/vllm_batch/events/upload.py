"""Events of a multi-part upload."""

from __future__ import annotations

from typing import ClassVar

from vllm_batch.events.base import Event
from vllm_batch.ids import FileId, KeyId, PartId, ProjectId, UploadId


class _UploadEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("upload_id",)

    upload_id: UploadId


class UploadCreated(_UploadEvent, frozen=True, kw_only=True):
    """A multi-part upload was opened. ``expires_at`` is in Unix seconds."""

    TYPE: ClassVar[str] = "upload.created"

    project: ProjectId
    key_id: KeyId | None = None
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    expires_at: int
    file_expires_after_seconds: int | None = None


class UploadPartAdded(_UploadEvent, frozen=True, kw_only=True):
    """A part is stored."""

    TYPE: ClassVar[str] = "upload.part_added"

    part_id: PartId
    bytes: int
    blob: str


class UploadCompleted(_UploadEvent, frozen=True, kw_only=True):
    """The parts were put together into a file."""

    TYPE: ClassVar[str] = "upload.completed"

    file_id: FileId
    part_ids: list[PartId]


class UploadCancelled(_UploadEvent, frozen=True, kw_only=True):
    """The user gave the upload up."""

    TYPE: ClassVar[str] = "upload.cancelled"


UploadEvent = UploadCreated | UploadPartAdded | UploadCompleted | UploadCancelled
