"""Results while a batch runs (beyond OpenAI): finished lines, in the order they were recorded.

Follows the batch's chunk events and reads the segments they name. That order never changes, so the
cursor is simply the number of lines that a client already has. Requests that never ran (cancelled,
expired) have no line here; they are in the batch's error file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from batch_gateway.api.answers import DOCUMENTED_ERRORS
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal
from batch_gateway.api.request_body import invalid
from batch_gateway.api.streaming import (
    EVENT_STREAM,
    UNBUFFERED,
    StreamedResponse,
    closing,
    json_line,
    sse,
    with_keep_alive,
)
from vllm_batch.aggregates.job import Job
from vllm_batch.errors import BlobMissing
from vllm_batch.events import (
    ChunkCompleted,
    ChunkProgressed,
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    Recorded,
    Segment,
)
from vllm_batch.messaging import subjects
from vllm_batch.segments import decode_segment

router = APIRouter(prefix="/v1/batches", tags=["Beyond OpenAI"])

JSON_LINES = "application/jsonl"
CURSOR_MAX = 2**53
_TERMINAL = (JobCompleted, JobExpired, JobCancelled, JobFailed)
_TEXT = {"schema": {"type": "string"}}
_DOCUMENTED = {
    200: {
        "description": "Result lines, as in the batch's output and error files.",
        "content": {JSON_LINES: _TEXT, EVENT_STREAM: _TEXT},
    },
    **DOCUMENTED_ERRORS,
}


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    """The last server-sent event: why the stream ends, and the cursor to go on from."""

    object: str = "results.done"
    finished: bool
    cursor: int


class ResultStream:
    """Lines of one batch from a cursor on. ``cursor`` moves with what was yielded."""

    def __init__(self, api: Dependencies, job: Job, *, cursor: int, follow: bool) -> None:
        self.cursor = cursor
        self.finished = False
        self._api = api
        self._job = job
        self._follow = follow

    async def segments(self) -> AsyncGenerator[list[bytes], None]:
        """Yield the lines of one segment after the other.

        Raises:
            HttpRefusal: 410, the batch is over and its segments are purged.
        """
        skip = self.cursor
        async with aclosing(self._events()) as events:
            async for recorded in events:
                event = recorded.event
                if isinstance(event, _TERMINAL):
                    self.finished = True
                    return
                segment = _segment_of(event)
                if segment is None:
                    continue
                count = segment.completed + segment.failed
                if skip >= count:
                    skip -= count
                    continue
                lines = await self._lines(segment)
                yield lines[skip:]
                skip = 0

    async def _events(self) -> AsyncGenerator[Recorded, None]:
        job_id = self._job.job_id
        own, chunks = subjects.job(job_id), subjects.chunks_of(job_id)
        batches: AsyncIterator[list[Recorded]]
        if self._follow and not self._job.terminal:
            batches = self._api.store.follow([own, chunks])
        else:
            self.finished = self._job.terminal
            batches = self._api.store.read(chunks)
        async with closing(batches):
            async for batch in batches:
                for recorded in batch:
                    yield recorded

    async def _lines(self, segment: Segment) -> list[bytes]:
        try:
            data = await self._api.blobs.get(segment.blob)
        except BlobMissing as error:
            ended = self._job.ended
            files = [ended.output_file_id, ended.error_file_id] if ended else []
            names = " and ".join(name for name in files if name) or "its files"
            raise HttpRefusal(
                410,
                f"The batch ended a while ago and its single results are gone: download {names}.",
                code="results_gone",
            ) from error
        return [result.line for result in decode_segment(data)]


def _segment_of(event: object) -> Segment | None:
    return event.segment if isinstance(event, ChunkProgressed | ChunkCompleted) else None


@router.get("/{batch_id}/results", responses=_DOCUMENTED)
async def stream_results(
    batch_id: str,
    request: Request,
    api: Api,
    caller: CalledBy,
    *,
    cursor: Annotated[int, Query(ge=0, le=CURSOR_MAX)] = 0,
    follow: bool = True,
) -> Response:
    """Stream result lines; the batch may still run.

    ``cursor`` is the number of lines to leave out because the client has them. With
    ``follow=false`` the answer ends with what there is now, else with the batch. As server-sent
    events (by the Accept header) each line's id is the cursor after it, and ``Last-Event-ID``
    resumes.
    """
    job = (await api.reads.job(caller.project, batch_id)).job
    as_events = EVENT_STREAM in request.headers.get("accept", "")
    if as_events and (last_id := request.headers.get("last-event-id")):
        cursor = _resumed(last_id)
    stream = ResultStream(api, job, cursor=cursor, follow=follow)
    pieces = _as_events(stream) if as_events else _as_lines(stream)
    if job.terminal:
        pieces = await _primed(pieces)
    if as_events:
        pieces = with_keep_alive(pieces)
    media_type = EVENT_STREAM if as_events else JSON_LINES
    return StreamedResponse(pieces, headers=UNBUFFERED, media_type=media_type)


def _resumed(last_id: str) -> int:
    if not (last_id.isascii() and last_id.isdigit() and len(last_id) <= 16):
        raise invalid("Last-Event-ID", "it has to be the number of lines received")
    return int(last_id)


async def _as_lines(stream: ResultStream) -> AsyncGenerator[bytes, None]:
    async with aclosing(stream.segments()) as segments:
        async for lines in segments:
            yield b"".join(lines)


async def _as_events(stream: ResultStream) -> AsyncGenerator[bytes, None]:
    async with aclosing(stream.segments()) as segments:
        async for lines in segments:
            events = []
            for line in lines:
                stream.cursor += 1
                events.append(sse(line.rstrip(b"\n"), event="result", id=str(stream.cursor)))
            yield b"".join(events)
    done = _Done(finished=stream.finished, cursor=stream.cursor)
    yield sse(json_line(done), event="done")


async def _primed(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Fetch the first piece now, so that results that are gone are an error answer."""
    first = await anext(pieces, b"")

    async def primed() -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return primed()
