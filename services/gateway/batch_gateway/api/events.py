"""Events for tools outside (beyond OpenAI): as server-sent events, or over a WebSocket.

``GET /v1/events`` follows the log from where the caller says and never skips: an event's id is its
sequence, and ``Last-Event-ID`` goes on after it. What is sent are CloudEvents in JSON, as the log
has them. ``GET /v1/events/asyncapi`` says which there are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from importlib import metadata
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, WebSocket, WebSocketDisconnect
from starlette.responses import Response

from batch_gateway.api.answers import DOCUMENTED_ERRORS, answer
from batch_gateway.api.authentication import Caller
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal, response_to
from batch_gateway.api.event_access import wanted_subjects
from batch_gateway.api.gate import caller_of
from batch_gateway.api.request_body import invalid
from batch_gateway.api.streaming import (
    EVENT_STREAM,
    UNBUFFERED,
    StreamedResponse,
    closing,
    sse,
    with_keep_alive,
)
from vllm_batch.errors import BatchError
from vllm_batch.event_store.starts import start_of
from vllm_batch.events import Recorded, encode
from vllm_batch.events.catalogue import asyncapi
from vllm_batch.tasks import first_to_end

router = APIRouter(prefix="/v1/events", tags=["Beyond OpenAI"])

_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events without an end; each is a CloudEvent in JSON.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    },
    **DOCUMENTED_ERRORS,
}


def cloud_event(recorded: Recorded) -> bytes:
    """Return the event in its envelope; the attribute ``sequence`` is its place in the log."""
    envelope: dict[str, Any] = msgspec.json.decode(
        encode(
            recorded.event,
            event_id=recorded.id,
            source=recorded.source,
            time=recorded.time,
            traceparent=recorded.traceparent,
        )
    )
    shown = {"data": recorded.event.shown(), "sequence": str(recorded.seq)}
    return msgspec.json.encode({**envelope, **shown})


async def _follow(
    api: Dependencies, caller: Caller, wanted: list[str], after: int
) -> AsyncGenerator[Recorded, None]:
    """Yield what ``caller`` may see; ends when its key counts no more, or its project is closed."""
    async with closing(api.store.follow(wanted, after=after)) as batches:
        async for batch in batches:
            if not api.keys.still_counts(caller) or api.limits.is_closed(caller.project):
                return
            for recorded in await api.owners.visible(caller, batch):
                yield recorded


async def _as_sse(events: AsyncGenerator[Recorded, None]) -> AsyncGenerator[bytes, None]:
    async with closing(events) as source:
        async for recorded in source:
            yield sse(cloud_event(recorded), event=recorded.event.TYPE, id=str(recorded.seq))


async def _after(api: Dependencies, start: str, last_id: str | None) -> int:
    if last_id:
        if not (last_id.isascii() and last_id.isdigit() and len(last_id) <= 16):
            raise invalid("Last-Event-ID", "it has to be the id of an event")
        return int(last_id)
    return await start_of(api.store, start, param="from")


@router.get("/asyncapi")
async def describe_events(api: Api, _: CalledBy) -> Response:
    """Return the catalogue of all events, an AsyncAPI 3 document."""
    return answer(asyncapi(metadata.version("vllm-batch"), server=api.settings.nats_url))


@router.get("", responses=_DOCUMENTED)
async def stream_events(
    request: Request,
    api: Api,
    caller: CalledBy,
    types: Annotated[str, Query(description="such as job.completed,file.*; default: all")] = "",
    start: Annotated[
        str, Query(alias="from", description="beginning, now, a sequence, or an ISO 8601 time")
    ] = "now",
) -> Response:
    """Follow events; ``Last-Event-ID`` goes on after the last one that was received."""
    wanted = wanted_subjects(caller, types)
    after = await _after(api, start, request.headers.get("last-event-id"))
    pieces = with_keep_alive(_as_sse(_follow(api, caller, wanted, after)))
    return StreamedResponse(pieces, headers=UNBUFFERED, media_type=EVENT_STREAM)


@router.websocket("")
async def follow_over_websocket(socket: WebSocket) -> None:
    """Follow events over a WebSocket: a text message each. Same parameters, key and resumption
    (``from`` a sequence) as `stream_events`."""
    api: Dependencies = socket.app.state.dependencies
    caller = caller_of(socket.scope)
    query = socket.query_params
    try:
        wanted = wanted_subjects(caller, query.get("types", ""))
        last_id = socket.headers.get("last-event-id")
        after = await _after(api, query.get("from", "now"), last_id)
    except (HttpRefusal, BatchError) as error:
        await _refuse(socket, error)
        return
    await socket.accept()
    with suppress(WebSocketDisconnect):
        await first_to_end(
            _send_all(socket, _follow(api, caller, wanted, after)), _until_left(socket)
        )


async def _refuse(socket: WebSocket, error: Exception) -> None:
    """Answer the handshake with the same envelope that an HTTP request would get."""
    await socket.send_denial_response(response_to(error))


async def _send_all(socket: WebSocket, events: AsyncGenerator[Recorded, None]) -> None:
    async with closing(events) as source:
        async for recorded in source:
            await socket.send_text(cloud_event(recorded).decode())


async def _until_left(socket: WebSocket) -> None:
    while True:
        await socket.receive_text()  # nothing is expected of the client but its end
