"""The bytes of a file: streamed out of the blob store, whole or a single range of them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from batch_gateway.api.answers import DOCUMENTED_ERRORS
from batch_gateway.api.dependencies import Api, CalledBy
from batch_gateway.api.errors import HttpRefusal
from batch_gateway.api.streaming import StreamedResponse
from vllm_batch.errors import BlobMissing, NotFound
from vllm_batch.projections.rows import FileRow

router = APIRouter(prefix="/v1/files", tags=["Files"])

MEDIA_TYPE = "application/octet-stream"
_RANGE = re.compile(r"bytes=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)
_BINARY = {"type": "string", "format": "binary"}
_DOCUMENTED = {
    200: {"description": "The content.", "content": {MEDIA_TYPE: {"schema": _BINARY}}},
    206: {"description": "The range asked for.", "content": {MEDIA_TYPE: {"schema": _BINARY}}},
    **DOCUMENTED_ERRORS,
}


class ByteRange(NamedTuple):
    """Bytes [start, start + length)."""

    start: int
    length: int


def requested_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range a ``Range`` header asks for; None: the whole, as for forms we do not serve.

    Raises:
        HttpRefusal: 416, no byte of the range exists.
    """
    match = _RANGE.fullmatch(header) if header else None
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        length = min(int(last), size)
        start, end = size - length, size - 1
    else:
        start = int(first)
        end = min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None  # malformed: RFC 9110 has it ignored
    if start > end or start >= size:
        raise HttpRefusal(
            416,
            f"The file has {size} bytes; the range asked for has none of them.",
            headers={"content-range": f"bytes */{size}"},
        )
    return ByteRange(start, end - start + 1)


def content_disposition(filename: str) -> str:
    """Return the header that offers ``filename``, whatever is in it (RFC 6266)."""
    plain = re.sub(r"[^ !#$&+\-.0-9A-Z^_`a-z{}~()\[\]=,@]", "_", filename)
    extended = quote(filename, safe="!#$&+-.^_`|~")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{extended}"


@router.get("/{file_id}/content", responses=_DOCUMENTED)
@router.head("/{file_id}/content", include_in_schema=False)
async def retrieve_content(file_id: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Download a file."""
    row = await api.reads.file(caller.project, file_id)
    tag = f'"{row.file_id}"'  # the bytes behind an id never change
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": content_disposition(row.filename),
        "etag": tag,
    }
    wanted = None
    if request.headers.get("if-range", tag) == tag:
        wanted = requested_range(request.headers.get("range"), row.bytes)
    start, length = wanted or ByteRange(0, row.bytes)
    headers["content-length"] = str(length)
    if wanted:
        headers["content-range"] = f"bytes {start}-{start + length - 1}/{row.bytes}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=MEDIA_TYPE)
    pieces = api.blobs.stream(row.blob, start=start, length=length)
    first = await _first_piece(row, pieces)
    return StreamedResponse(
        _rest(first, pieces), status_code=status, headers=headers, media_type=MEDIA_TYPE
    )


async def _first_piece(row: FileRow, pieces: AsyncIterator[bytes]) -> bytes:
    """Return the first piece, so that a missing blob is an error answer and not a torn one."""
    try:
        return await anext(pieces, b"")
    except BlobMissing as error:
        raise NotFound(f"The content of file {row.file_id} is gone.") from error


async def _rest(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    async for piece in pieces:
        yield piece
