"""A file as clients see it, and the rules that every new file is held to."""

from __future__ import annotations

import msgspec

from batch_gateway.api.request_body import invalid
from vllm_batch.projections.rows import FileRow
from vllm_batch.settings import Settings

UPLOAD_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
ALL_PURPOSES = (*UPLOAD_PURPOSES, "assistants_output", "batch_output", "fine-tune-results")
FILENAME_CHARACTERS_MAX = 1024


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None


class FileDeletion(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is no more."""

    id: str
    object: str = "file"
    deleted: bool = True


def file_object(row: FileRow) -> FileObject:
    """Return what clients see of ``row``."""
    return FileObject(
        id=row.file_id,
        bytes=row.bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        filename=row.filename,
        purpose=row.purpose,
    )


def checked_purpose(purpose: str) -> str:
    """Return ``purpose`` if files may be uploaded for it."""
    if purpose not in UPLOAD_PURPOSES:
        raise invalid("purpose", f"it has to be one of {', '.join(UPLOAD_PURPOSES)}")
    return purpose


def bytes_max_of(settings: Settings, purpose: str | None) -> int:
    """Return how large a file of ``purpose`` (None: not known yet) may be."""
    if purpose == "batch":
        return min(settings.batch_file_bytes_max, settings.file_bytes_max)
    return settings.file_bytes_max


def expires_at(
    settings: Settings, *, purpose: str, created_at: int, after_seconds: int | None
) -> int | None:
    """Return when a new file's time is up, in Unix seconds; None: never."""
    if after_seconds is None:
        if purpose != "batch":
            return None
        after_seconds = settings.batch_file_expiry_seconds
    return created_at + after_seconds
