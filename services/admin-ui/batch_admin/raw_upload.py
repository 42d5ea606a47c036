"""Files that a browser sends, handed on piece by piece: nothing is kept here, however large."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from nicegui import app, ui
from starlette.requests import Request
from starlette.responses import Response

_HEADERS = "files => [{name: 'X-File-Name', value: encodeURIComponent(files[0].name)}]"


@dataclass(frozen=True)
class RawFile:
    """A file on its way; ``pieces`` come once."""

    name: str
    pieces: AsyncIterator[bytes]


def raw_upload(label: str, take: Callable[[RawFile], Awaitable[None]], *, bytes_max: int) -> None:
    """Show where a file is chosen or dropped; ``take`` reads it while it comes.

    NiceGUI's own way stores a file twice before anybody sees it.
    """
    area = ui.upload(
        label=label,
        auto_upload=True,
        max_files=1,
        max_file_size=bytes_max,
        on_rejected=lambda: ui.notify("This file is too large.", type="negative"),
    ).props("send-raw accept=.jsonl flat bordered")
    area.classes("w-full").on(
        "failed", lambda: ui.notify("The upload broke off.", type="negative"), args=[]
    )
    path = f"/uploads/{area.client.id}/{area.id}"
    area.props["url"] = path
    area.props[":headers"] = _HEADERS

    async def receive(request: Request) -> Response:
        with area.client:
            await take(RawFile(unquote(request.headers["x-file-name"]), request.stream()))
            area.reset()
        return Response(status_code=204)

    app.post(path)(receive)
    area.client.on_delete(lambda: app.remove_route(path))
