"""Events of one batch (beyond OpenAI): everything that happened and happens to it, as SSE.

Follows ``job.*.<job>`` and ``chunk.*.<job>.*``. An event's id is its sequence in the log.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from batch_gateway.api.answers import DOCUMENTED_ERRORS
from batch_gateway.api.authentication import Caller
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
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
from vllm_batch.events import JobCancelled, JobCompleted, JobExpired, JobFailed, Recorded
from vllm_batch.events.base import Event
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

router = APIRouter(prefix="/v1/batches", tags=["Beyond OpenAI"])

SEQUENCE_MAX = 2**53
_TERMINAL = (JobCompleted, JobExpired, JobCancelled, JobFailed)
_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events; the last one is the end of the batch.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    },
    204: {"description": "The batch has ended and nothing came after the given sequence."},
    **DOCUMENTED_ERRORS,
}


class BatchEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event. ``seq`` is its place in the log; ``data`` is as it was recorded."""

    id: str
    seq: int
    type: str
    time: datetime
    data: Event


def _encoded(recorded: Recorded) -> bytes:
    event = BatchEvent(
        id=recorded.id,
        seq=recorded.seq,
        type=recorded.event.TYPE,
        time=recorded.time,
        data=recorded.event,
    )
    return sse(json_line(event), event=recorded.event.TYPE, id=str(recorded.seq))


async def _follow(
    api: Dependencies, caller: Caller, job_id: JobId, after: int
) -> AsyncGenerator[bytes, None]:
    wanted = [subjects.job(job_id), subjects.chunks_of(job_id)]
    async with closing(api.store.follow(wanted, after=after)) as batches:
        async for batch in batches:
            if not api.keys.still_counts(caller):
                return
            for recorded in batch:
                yield _encoded(recorded)
                if isinstance(recorded.event, _TERMINAL):
                    return


@router.get("/{batch_id}/events", responses=_DOCUMENTED)
async def stream_events(
    batch_id: str,
    request: Request,
    api: Api,
    caller: CalledBy,
    after: Annotated[int, Query(ge=0, le=SEQUENCE_MAX)] = 0,
) -> Response:
    """Stream the batch's events from the beginning, or from after ``Last-Event-ID``, to its end."""
    found = await api.reads.job(caller.project, batch_id)
    if last_id := request.headers.get("last-event-id"):
        if not (last_id.isascii() and last_id.isdigit() and len(last_id) <= 16):
            raise invalid("Last-Event-ID", "it has to be the id of an event")
        after = int(last_id)
    if found.job.terminal and after >= found.seq:
        return Response(status_code=204)  # tells an EventSource not to come back
    pieces = with_keep_alive(_follow(api, caller, found.job.job_id, after))
    return StreamedResponse(pieces, headers=UNBUFFERED, media_type=EVENT_STREAM)
