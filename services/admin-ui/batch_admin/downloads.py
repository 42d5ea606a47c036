"""Files of batches, passed through from the blob store to a signed-in user's browser."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from batch_admin.services import Services
from vllm_batch import ids
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import FileCreated, FileDeleted, FileUploaded, Recorded
from vllm_batch.messaging import subjects

File = FileUploaded | FileCreated


def create_router(services: Services) -> APIRouter:
    """Return the route of downloads."""
    router = APIRouter()

    @router.get("/files/{file_id}/content")
    async def download(file_id: str) -> Response:
        found = await _find(services, file_id)
        if found is None:
            return PlainTextResponse("There is no such file any more.\n", status_code=404)
        headers = {
            "Content-Disposition": f"attachment; filename*=utf-8''{quote(found.filename)}",
            "Content-Length": str(found.bytes),
        }
        pieces = services.blobs.stream(found.blob)
        return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")

    return router


async def _find(services: Services, file_id: str) -> File | None:
    if not ids.is_token(file_id):
        return None

    def evolve(state: File | None, recorded: Recorded) -> File | None:
        event = recorded.event
        if isinstance(event, FileDeleted):
            return None
        return event if isinstance(event, File) else state

    found, _ = await fold(services.store, subjects.aggregate("file", file_id), evolve)
    return found
