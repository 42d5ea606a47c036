"""Files: upload, list, retrieve, delete. Content is served by `content`.

Writes the blobs ``files/<file id>`` and the events ``file.uploaded`` and ``file.deleted``.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from batch_gateway.api import file_object as rules
from batch_gateway.api import quotas
from batch_gateway.api.answers import Page, answer, documented, page_of, takes_form
from batch_gateway.api.authentication import Caller
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal, missing, too_large
from batch_gateway.api.file_object import FileDeletion, FileObject, file_object
from batch_gateway.api.intake import Intake, refuse_without_room
from batch_gateway.api.multipart import Form, Part
from batch_gateway.api.reads import unix
from batch_gateway.api.request_body import (
    EXPIRY_SECONDS_MAX,
    EXPIRY_SECONDS_MIN,
    checked_text,
    expiry_seconds,
    invalid,
)
from vllm_batch import ids
from vllm_batch.errors import BlobError, Conflict, NotFound
from vllm_batch.events import FileDeleted, FileUploaded
from vllm_batch.ids import FileId
from vllm_batch.projections import files

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/files", tags=["Files"])

FIELD_BYTES_MAX = 1024
FORM_OVERHEAD_BYTES_MAX = 1024 * 1024
_DEFAULT_FILENAME = "upload"
_UPLOAD_FORM = takes_form(
    {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(rules.UPLOAD_PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": EXPIRY_SECONDS_MIN,
            "maximum": EXPIRY_SECONDS_MAX,
        },
    },
    ["file", "purpose"],
    dependentRequired={
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
)


class _Upload:
    """A file upload that is being received: fields may come in any order."""

    def __init__(self, api: Dependencies) -> None:
        self.api = api
        self.file_id = FileId(api.new_id("file-"))
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.intake = Intake(
            api.blobs,
            f"files/{self.file_id}",
            bytes_max=rules.bytes_max_of(api.settings, None),
            free_bytes_min=api.settings.blob_free_bytes_min,
        )

    async def receive(self, form: Form) -> None:
        """Store the file and note the fields; refuse as soon as it is clear that it must be."""
        async for part in form.parts():
            if part.name == "file":
                await self._receive_file(part)
            else:
                self.fields[part.name] = await part.text(FIELD_BYTES_MAX)
            if part.name == "purpose":
                purpose = rules.checked_purpose(self.fields["purpose"])
                self.intake.bytes_max = rules.bytes_max_of(self.api.settings, purpose)
                self.intake.check_size()

    async def _receive_file(self, part: Part) -> None:
        if self.filename is not None:
            raise invalid("file", "there is more than one")
        self.filename = checked_text(
            part.filename or _DEFAULT_FILENAME, "file", rules.FILENAME_CHARACTERS_MAX
        )
        await self.intake.store(part.chunks())

    def event(self, caller: Caller, now: datetime) -> FileUploaded:
        """Return what happened, once everything is there and allowed."""
        if self.filename is None:
            raise missing("file")
        if "purpose" not in self.fields:
            raise missing("purpose")
        if self.intake.bytes == 0:
            raise invalid("file", "it is empty")
        return FileUploaded(
            file_id=self.file_id,
            project=caller.project,
            key_id=caller.key_id,
            filename=self.filename,
            purpose=self.fields["purpose"],
            bytes=self.intake.bytes,
            sha256=self.intake.sha256,
            lines=self.intake.lines,
            blob=self.intake.key,
            expires_at=rules.expires_at(
                self.api.settings,
                purpose=self.fields["purpose"],
                created_at=unix(now),
                after_seconds=self._expires_after(),
            ),
        )

    def _expires_after(self) -> int | None:
        given = {
            name: self.fields[f"expires_after[{name}]"]
            for name in ("anchor", "seconds")
            if f"expires_after[{name}]" in self.fields
        }
        if not given:
            return None
        seconds = given.get("seconds", "")
        value: dict[str, object] = {**given}
        if seconds.isascii() and seconds.isdigit() and len(seconds) < 20:
            value["seconds"] = int(seconds)
        return expiry_seconds({"expires_after": value}, "expires_after")


@router.post("", openapi_extra=_UPLOAD_FORM, responses=documented(FileObject))
async def create_file(request: Request, api: Api, caller: CalledBy) -> Response:
    """Upload a file. It is streamed to the store; what is refused leaves nothing behind."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit():
        bytes_max = rules.bytes_max_of(api.settings, None)
        if int(declared) > bytes_max + FORM_OVERHEAD_BYTES_MAX:
            raise too_large("The file", bytes_max)
        refuse_without_room(api.blobs, int(declared), api.settings.blob_free_bytes_min)
        await quotas.check_storage(api, caller, int(declared) - FORM_OVERHEAD_BYTES_MAX)
    upload = _Upload(api)
    async with AsyncExitStack() as turn:
        try:
            await upload.receive(Form(request.headers.get("content-type", ""), request.stream()))
            now = api.clock.now()
            event = upload.event(caller, now)
            await turn.enter_async_context(quotas.turn(api, caller))
            await quotas.check_storage(api, caller, event.bytes)
        except BaseException:
            await upload.intake.discard()
            raise
        # From here on the blob stays: an append without an answer may well have happened.
        recorded = await api.store.append(event, expected=0, at=now)
        await api.reads.catch_up(recorded.seq)
    return answer(file_object(files.evolve(None, recorded)))


@router.get("", responses=documented(Page))
async def list_files(
    api: Api,
    caller: CalledBy,
    *,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """List the project's files in the order they were created."""
    if purpose is not None and purpose not in rules.ALL_PURPOSES:
        raise invalid("purpose", f"it has to be one of {', '.join(rules.ALL_PURPOSES)}")
    if after is not None and not ids.is_token(after):
        raise invalid("after", "there is no such file")
    lists = await api.reads.fresh_lists()
    rows, has_more = await lists.files(
        caller.project,
        purpose=purpose,
        limit=limit,
        order=order,
        after=FileId(after) if after else None,
    )
    return page_of([file_object(row) for row in rows], has_more=has_more)


@router.get("/{file_id}", responses=documented(FileObject))
async def retrieve_file(file_id: str, api: Api, caller: CalledBy) -> Response:
    """Retrieve a file's description."""
    return answer(file_object(await api.reads.file(caller.project, file_id)))


@router.delete("/{file_id}", responses=documented(FileDeletion))
async def delete_file(file_id: str, api: Api, caller: CalledBy) -> Response:
    """Delete a file. The input of a batch that has not ended is kept: 409."""
    row, seq = await api.reads.file_and_sequence(caller.project, file_id)
    if row.purpose == "batch":
        await _refuse_in_use(api, row.file_id)
    try:
        event = FileDeleted(file_id=row.file_id, reason="requested")
        recorded = await api.store.append(event, expected=seq)
    except Conflict as error:  # files only ever change by ending
        raise NotFound(f"No such File object: {file_id}") from error
    try:
        await api.blobs.delete(row.blob)
    except BlobError as error:
        log.warning("blob of a deleted file is left", blob=row.blob, error=repr(error))
    await api.reads.catch_up(recorded.seq)
    return answer(FileDeletion(id=row.file_id))


async def _refuse_in_use(api: Dependencies, file_id: FileId) -> None:
    """Which batches use a file is a question to the read models, and an old answer is no answer."""
    await api.reads.catch_up(await api.store.last_sequence())
    lists = await api.reads.fresh_lists()
    if await lists.input_in_use(file_id):
        raise HttpRefusal(
            409,
            f"File {file_id} is the input of a batch that has not ended: "
            "cancel the batch or wait for its end.",
        )
