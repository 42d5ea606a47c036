"""Answers without a known end: closed when the client leaves, kept alive while nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

Item = TypeVar("Item")

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class StreamedResponse(StreamingResponse):
    """Streams a generator and closes it however the answer ends."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str,
    ) -> None:
        super().__init__(pieces, status_code, headers, media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()


@asynccontextmanager
async def closing(items: AsyncIterator[Item]) -> AsyncIterator[AsyncIterator[Item]]:
    """Close ``items`` at the end if it is a generator: what it holds is given back at once."""
    try:
        yield items
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


def sse(data: bytes, *, event: str | None = None, id: str | None = None) -> bytes:  # noqa: A002
    """Return a server-sent event. ``data`` is one line, as JSON is."""
    head = f"id: {id}\n" if id is not None else ""
    head += f"event: {event}\n" if event is not None else ""
    return b"%sdata: %s\n\n" % (head.encode(), data)


def json_line(value: Any) -> bytes:
    """Return ``value`` as JSON in one line, without the line's end."""
    return msgspec.json.encode(value)


async def with_keep_alive(
    pieces: AsyncGenerator[bytes, None], seconds: float = KEEP_ALIVE_SECONDS
) -> AsyncGenerator[bytes, None]:
    """Yield ``pieces``, and a comment whenever nothing came for ``seconds``."""
    waiting: asyncio.Future[bytes] = asyncio.ensure_future(_next(pieces))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                yield KEEP_ALIVE
                continue
            try:
                piece = waiting.result()
            except StopAsyncIteration:
                return
            waiting = asyncio.ensure_future(_next(pieces))
            yield piece
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await pieces.aclose()


async def _next(pieces: AsyncIterator[Item]) -> Item:
    return await anext(pieces)
