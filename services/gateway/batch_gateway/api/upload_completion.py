"""Making a file of an upload's parts, and reading and writing an upload's events.

Writes ``files/<file>``, ``file.uploaded`` and ``upload.completed``, in this order. The file's id
follows from the upload, the order of its parts and the checksum, so completing again after a lost
answer or a crash makes no second file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import datetime

import structlog

from batch_gateway.api import file_object as file_rules
from batch_gateway.api import quotas
from batch_gateway.api.authentication import Caller
from batch_gateway.api.dependencies import Dependencies
from batch_gateway.api.errors import shown
from batch_gateway.api.intake import Intake
from batch_gateway.api.reads import unix
from batch_gateway.api.request_body import invalid
from batch_gateway.api.upload_state import Upload, evolve
from vllm_batch import ids
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobError, Conflict, InvalidInput, NotFound
from vllm_batch.event_store import append_decided
from vllm_batch.events import (
    Event,
    FileDeleted,
    FileUploaded,
    Recorded,
    UploadCompleted,
    UploadPartAdded,
)
from vllm_batch.ids import FileId, PartId, UploadId
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

APPEND_ROUNDS_MAX = 20


async def find(api: Dependencies, caller: Caller, upload_id: str) -> Upload:
    """Return an upload of the caller's project.

    Raises:
        NotFound: there is none of that id.
    """
    upload: Upload | None = None
    if ids.is_token(upload_id):
        upload, _ = await api.reads.fold(subjects.aggregate("upload", upload_id), evolve)
    if upload is None or upload.created.project != caller.project:
        raise NotFound(f"No such Upload object: {shown(upload_id)}")
    return upload


def pending(api: Dependencies, upload: Upload | None) -> Upload:
    """Return the upload if it is open.

    Raises:
        InvalidInput: it is not.
    """
    if upload is None:
        raise NotFound("No such Upload object")
    status = upload.status(api.clock.now().timestamp())
    if status != "pending":
        raise InvalidInput(f"Upload {upload.created.upload_id} is {status}.")
    return upload


async def append(
    api: Dependencies, upload_id: UploadId, decide: Callable[[Upload | None], Event]
) -> tuple[Recorded, Upload]:
    """Decide and append; parts that arrive in parallel take turns."""
    subject = subjects.aggregate("upload", upload_id)
    async with api.locks.of(f"append {upload_id}"):
        for _ in range(APPEND_ROUNDS_MAX - 1):
            try:
                return await append_decided(api.store, subject, evolve, decide)
            except Conflict:  # many parts at many replicas
                continue
        return await append_decided(api.store, subject, evolve, decide)


async def delete_parts(api: Dependencies, upload_id: UploadId) -> None:
    """Delete the parts' blobs; nobody needs them any more."""
    try:
        await api.blobs.delete_all(f"uploads/{upload_id}")
    except BlobError as error:
        log.warning("parts of an upload are left", upload_id=upload_id, error=repr(error))


async def complete(
    api: Dependencies, caller: Caller, upload: Upload, part_ids: list[PartId], md5: str | None
) -> Upload:
    """Join the named parts into a file and end the upload.

    Raises:
        InvalidInput: the parts, their sizes or the checksum do not fit.
        StorageFull: there is no room for the file.
        HttpRefusal: the project may not store that much more.
    """
    parts = _named_parts(upload, part_ids)
    upload_id = upload.created.upload_id
    file_id = FileId(ids.derived("file-", upload_id, md5 or "", *part_ids))
    file_seq = await _recorded_before(api, file_id)
    if not file_seq:
        intake = await _join(api, upload, file_id, parts, md5)
        file_seq = await _record(api, caller, upload, intake)

    def decide(state: Upload | None) -> Event:
        pending(api, state)
        return UploadCompleted(upload_id=upload_id, file_id=file_id, part_ids=part_ids)

    try:
        ended, upload = await append(api, upload_id, decide)
    except InvalidInput:  # another replica ended the upload first, in another way
        await api.store.append(FileDeleted(file_id=file_id, reason="requested"), expected=file_seq)
        await api.blobs.delete(f"files/{file_id}")
        raise
    await delete_parts(api, upload_id)
    await api.reads.catch_up(ended.seq)
    return upload


async def _record(api: Dependencies, caller: Caller, upload: Upload, intake: Intake) -> int:
    """Put the file on record, if the project may have it; return its sequence."""
    now = api.clock.now()
    event = _uploaded(api, caller, upload, intake, now)
    async with AsyncExitStack() as turn:
        try:
            await turn.enter_async_context(quotas.turn(api, caller))
            await quotas.check_storage(api, caller, event.bytes, upload_id=upload.created.upload_id)
        except BaseException:
            await intake.discard()
            raise
        recorded = await api.store.append(event, expected=0, at=now)
        await api.reads.catch_up(recorded.seq)
        api.open_uploads.end(upload.created.upload_id)
    return recorded.seq


async def _recorded_before(api: Dependencies, file_id: FileId) -> int:
    """Return the sequence of the file if an earlier attempt came that far; else 0."""
    subject = subjects.aggregate("file", file_id)
    _, seq = await api.reads.fold(subject, lambda _, recorded: recorded)
    return seq


async def _join(
    api: Dependencies,
    upload: Upload,
    file_id: FileId,
    parts: list[UploadPartAdded],
    md5: str | None,
) -> Intake:
    intake = Intake(
        api.blobs,
        f"files/{file_id}",
        bytes_max=upload.created.bytes,
        free_bytes_min=api.settings.blob_free_bytes_min,
        with_md5=True,
    )
    try:
        await intake.store(_content(api.blobs, parts))
        if md5 is not None and md5.lower() != intake.md5:
            raise invalid("md5", "it is not the checksum of the parts")
    except BaseException:
        await intake.discard()
        raise
    return intake


def _named_parts(upload: Upload, part_ids: list[PartId]) -> list[UploadPartAdded]:
    for part_id in part_ids:
        if part_id not in upload.parts:
            raise invalid("part_ids", f"the upload has no part {shown(part_id)}")
    parts = [upload.parts[part_id] for part_id in part_ids]
    size = sum(part.bytes for part in parts)
    if size != upload.created.bytes:
        raise invalid(
            "part_ids",
            f"the parts have {size} bytes in all, the upload was declared with "
            f"{upload.created.bytes}",
        )
    return parts


async def _content(blobs: BlobStore, parts: list[UploadPartAdded]) -> AsyncIterator[bytes]:
    for part in parts:
        async for piece in blobs.stream(part.blob):
            yield piece


def _uploaded(
    api: Dependencies, caller: Caller, upload: Upload, intake: Intake, now: datetime
) -> FileUploaded:
    created = upload.created
    return FileUploaded(
        file_id=FileId(intake.key.rpartition("/")[2]),
        project=caller.project,
        key_id=caller.key_id,
        filename=created.filename,
        purpose=created.purpose,
        bytes=intake.bytes,
        sha256=intake.sha256,
        lines=intake.lines,
        blob=intake.key,
        expires_at=file_rules.expires_at(
            api.settings,
            purpose=created.purpose,
            created_at=unix(now),
            after_seconds=created.file_expires_after_seconds,
        ),
    )
