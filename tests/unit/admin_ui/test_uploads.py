"""An upload is passed on while it comes: a file larger than memory and disk needs neither."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import httpx

from batch_admin import new_batch
from batch_admin.raw_upload import RawFile
from batch_admin.services import Services

PIECES = 3


async def test_each_piece_is_sent_before_the_next_one_is_read() -> None:
    steps: list[str] = []
    note = steps.append

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(PIECES):
            note(f"read {number}")
            yield b"piece %d\n" % number

    class Gateway(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            async for part in request.stream:
                note(part.decode() if b"piece" in part else "form")
            return httpx.Response(200, json={"id": "file-1"})

    async with httpx.AsyncClient(transport=Gateway(), base_url="http://gateway") as gateway:
        services = cast(Services, SimpleNamespace(gateway=gateway))
        assert await new_batch.upload(services, RawFile("in.jsonl", pieces())) == "file-1"
    expected = [step for n in range(PIECES) for step in (f"read {n}", f"piece {n}\n")]
    assert [step for step in steps if step != "form"] == expected
