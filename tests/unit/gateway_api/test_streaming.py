"""Streams that stay alive, and that are closed when nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from batch_gateway.api.streaming import KEEP_ALIVE, StreamedResponse, closing, sse, with_keep_alive


async def test_silence_is_filled_with_comments_and_nothing_is_lost() -> None:
    go_on = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"1"
        await go_on.wait()
        yield b"2"

    stream = with_keep_alive(pieces(), seconds=0.005)
    assert await anext(stream) == b"1"
    assert await anext(stream) == KEEP_ALIVE
    assert await anext(stream) == KEEP_ALIVE
    go_on.set()
    rest = [piece async for piece in stream]
    assert [piece for piece in rest if piece != KEEP_ALIVE] == [b"2"]


async def test_an_error_comes_through() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"1"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        [piece async for piece in with_keep_alive(pieces())]


async def test_leaving_early_closes_the_source() -> None:
    closed = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"1"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with closing(with_keep_alive(pieces())) as stream:
        assert await anext(stream) == b"1"
    assert closed.is_set()


async def test_a_response_closes_its_generator_when_the_client_leaves() -> None:
    closed = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    sent = asyncio.Event()

    async def receive() -> dict[str, str]:
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            sent.set()
        await asyncio.sleep(0)

    response = StreamedResponse(pieces(), media_type="text/plain")
    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    await response(scope, receive, send)  # type: ignore[arg-type]
    assert closed.is_set()


def test_server_sent_events_have_an_id_and_a_name() -> None:
    assert sse(b"{}", event="e", id="7") == b"id: 7\nevent: e\ndata: {}\n\n"
    assert sse(b"{}") == b"data: {}\n\n"
