"""Uploads: large files in parts, which may arrive in parallel and in any order.

Writes the blobs ``uploads/<upload>/<part>`` and the events ``upload.*``; `upload_completion` makes
the file of it.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta
from starlette.responses import Response

from batch_gateway.api import file_object as file_rules
from batch_gateway.api import quotas
from batch_gateway.api.answers import answer, documented, takes, takes_form
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import missing, too_large
from batch_gateway.api.file_object import FileObject, file_object
from batch_gateway.api.intake import Intake, refuse_without_room
from batch_gateway.api.multipart import Form
from batch_gateway.api.reads import unix
from batch_gateway.api.request_body import (
    ExpiresAfter,
    checked_integer,
    checked_text,
    expiry_seconds,
    invalid,
    read_object,
    required_text,
    wrong_type,
)
from batch_gateway.api.upload_completion import append, complete, delete_parts, find, pending
from batch_gateway.api.upload_state import Upload, evolve
from vllm_batch.errors import InvalidInput
from vllm_batch.events import (
    Event,
    UploadCancelled,
    UploadCompleted,
    UploadCreated,
    UploadPartAdded,
)
from vllm_batch.ids import PartId, UploadId
from vllm_batch.projections.rows import FileRow

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"])

FORM_OVERHEAD_BYTES_MAX = 64 * 1024
PARTS_MAX = 10_000


class UploadObject(msgspec.Struct, frozen=True, kw_only=True):
    """A multi-part upload."""

    id: str
    object: str = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None = None


class PartObject(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an upload."""

    id: str
    object: str = "upload.part"
    created_at: int
    upload_id: str


class UploadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What opens an upload, for the OpenAPI document; it is read by hand, for errors that name the
    parameter."""

    bytes: Annotated[int, Meta(ge=1)]
    filename: Annotated[str, Meta(min_length=1, max_length=file_rules.FILENAME_CHARACTERS_MAX)]
    mime_type: Annotated[str, Meta(min_length=1, max_length=1024)]
    purpose: Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
    expires_after: ExpiresAfter | None = None


class CompleteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What ends an upload."""

    part_ids: Annotated[list[str], Meta(min_length=1)]
    md5: Annotated[str, Meta(max_length=32)] | None = None


@router.post("", openapi_extra=takes(UploadRequest), responses=documented(UploadObject))
async def create_upload(request: Request, api: Api, caller: CalledBy) -> Response:
    """Open an upload; it expires an hour later."""
    body = await read_object(request, api.settings)
    filename = required_text(body, "filename", file_rules.FILENAME_CHARACTERS_MAX)
    mime_type = required_text(body, "mime_type")
    purpose = file_rules.checked_purpose(required_text(body, "purpose"))
    if "bytes" not in body:
        raise missing("bytes")
    bytes_max = api.settings.upload_bytes_max
    if purpose == "batch":
        bytes_max = min(bytes_max, file_rules.bytes_max_of(api.settings, purpose))
    size = checked_integer(body["bytes"], "bytes", 1, bytes_max)
    after_seconds = expiry_seconds(body, "expires_after")
    refuse_without_room(api.blobs, size, api.settings.blob_free_bytes_min)
    now = api.clock.now()
    event = UploadCreated(
        upload_id=UploadId(api.new_id("upload_")),
        project=caller.project,
        key_id=caller.key_id,
        filename=filename,
        purpose=purpose,
        mime_type=mime_type,
        bytes=size,
        expires_at=unix(now) + api.settings.upload_expiry_seconds,
        file_expires_after_seconds=after_seconds,
    )
    async with quotas.turn(api, caller):
        await quotas.check_storage(api, caller, size)
        recorded = await api.store.append(event, expected=0, at=now)
        api.open_uploads.note(recorded)
    return answer(_upload_object(api, evolve(None, recorded), None))


@router.post(
    "/{upload_id}/parts",
    openapi_extra=takes_form({"data": {"type": "string", "format": "binary"}}, ["data"]),
    responses=documented(PartObject),
)
async def add_part(upload_id: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Add a part."""
    upload = pending(api, await find(api, caller, upload_id))
    bytes_max = api.settings.upload_part_bytes_max
    declared = request.headers.get("content-length", "")
    if declared.isdigit():
        if int(declared) > bytes_max + FORM_OVERHEAD_BYTES_MAX:
            raise too_large("The part", bytes_max)
        refuse_without_room(api.blobs, int(declared), api.settings.blob_free_bytes_min)
    part_id = PartId(api.new_id("part_"))
    intake = Intake(
        api.blobs,
        f"uploads/{upload.created.upload_id}/{part_id}",
        bytes_max=bytes_max,
        free_bytes_min=api.settings.blob_free_bytes_min,
    )
    try:
        await _receive_part(Form(request.headers.get("content-type", ""), request.stream()), intake)
    except BaseException:
        await intake.discard()
        raise
    event = UploadPartAdded(
        upload_id=upload.created.upload_id, part_id=part_id, bytes=intake.bytes, blob=intake.key
    )

    def decide(state: Upload | None) -> Event:
        _check_room(api, pending(api, state), intake.bytes)
        return event

    try:
        recorded, _ = await append(api, upload.created.upload_id, decide)
    except InvalidInput:  # of other errors it is not known whether the part is on record
        await intake.discard()
        raise
    return answer(PartObject(id=part_id, created_at=unix(recorded.time), upload_id=event.upload_id))


async def _receive_part(form: Form, intake: Intake) -> None:
    received = False
    async for part in form.parts():
        if part.name == "data" and not received:
            await intake.store(part.chunks())
            received = True
    if not received:
        raise missing("data")
    if intake.bytes == 0:
        raise invalid("data", "it is empty")


def _check_room(api: Dependencies, upload: Upload, more: int) -> None:
    """Bound what one upload can make us keep; a part may be sent again, so twice its size is."""
    if len(upload.parts) >= PARTS_MAX:
        raise InvalidInput(f"The upload has {PARTS_MAX} parts already, and cannot have more.")
    if upload.bytes_received + more > 2 * upload.created.bytes + api.settings.upload_part_bytes_max:
        raise InvalidInput("The parts are far larger than the upload was declared.")


@router.post(
    "/{upload_id}/complete",
    openapi_extra=takes(CompleteRequest),
    responses=documented(UploadObject),
)
async def complete_upload(upload_id: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Join the parts into a file. Asking again with the same parts answers the same file."""
    upload = await find(api, caller, upload_id)
    body = await read_object(request, api.settings)
    part_ids = _part_ids(body.get("part_ids"), present="part_ids" in body)
    md5 = checked_text(body["md5"], "md5", 32) if body.get("md5") is not None else None
    async with api.locks.of(f"complete {upload.created.upload_id}"):
        upload = await find(api, caller, upload_id)
        if upload.completed is None or upload.completed.part_ids != part_ids:
            upload = await complete(api, caller, pending(api, upload), part_ids, md5)
    completed = cast("UploadCompleted", upload.completed)
    row = await api.reads.file(caller.project, completed.file_id)
    return answer(_upload_object(api, upload, row))


def _part_ids(value: object, *, present: bool) -> list[PartId]:
    if not present:
        raise missing("part_ids")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong_type("part_ids", "an array of strings", value)
    if not value:
        raise invalid("part_ids", "there is none")
    if len(set(value)) != len(value):
        raise invalid("part_ids", "a part is named twice")
    return [PartId(item) for item in value]


@router.post("/{upload_id}/cancel", responses=documented(UploadObject))
async def cancel_upload(upload_id: str, api: Api, caller: CalledBy) -> Response:
    """Give an upload up. Of a cancelled one: 200, unchanged."""
    upload = await find(api, caller, upload_id)
    if not upload.cancelled:
        cancelled = UploadCancelled(upload_id=upload.created.upload_id)

        def decide(state: Upload | None) -> Event:
            pending(api, state)
            return cancelled

        _, upload = await append(api, upload.created.upload_id, decide)
        await delete_parts(api, upload.created.upload_id)
    return answer(_upload_object(api, upload, None))


def _upload_object(api: Dependencies, upload: Upload, row: FileRow | None) -> UploadObject:
    created = upload.created
    return UploadObject(
        id=created.upload_id,
        bytes=created.bytes,
        created_at=upload.created_at,
        expires_at=created.expires_at,
        filename=created.filename,
        purpose=created.purpose,
        status=upload.status(api.clock.now().timestamp()),
        file=file_object(row) if row else None,
    )
