"""Files that a browser sends, handed on piece by piece: nothing is kept here, however large."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from nicegui import app, ui
from starlette.requests import Request
from starlette.responses import Response

_HEADERS = "files => [{name: 'X-File-Name', value: encodeURIComponent(files[0].name)}]"

# Quasar's own, but for a button that has a name and none inside it.
_HEADER = """
<div class="row no-wrap items-center q-pa-sm">
  <q-spinner v-if="props.isUploading" class="q-uploader__spinner" />
  <div class="col">
    <div class="q-uploader__title">Choose a file or drop one here</div>
    <div class="q-uploader__subtitle">
      {{ props.uploadSizeLabel }} / {{ props.uploadProgressLabel }}
    </div>
  </div>
  <div style="display:none"><q-uploader-add-trigger /></div>
  <q-btn v-if="props.canAddFiles" icon="add_box" flat dense aria-label="Choose a file"
         @click="props.pickFiles" />
</div>
"""


@dataclass(frozen=True)
class RawFile:
    """A file on its way; ``pieces`` come once."""

    name: str
    pieces: AsyncIterator[bytes]


def raw_upload(take: Callable[[RawFile], Awaitable[None]], *, bytes_max: int) -> None:
    """Show where a file is chosen or dropped; ``take`` reads it while it comes.

    NiceGUI's own way stores a file twice before anybody sees it.
    """
    area = ui.upload(
        auto_upload=True,
        max_files=1,
        max_file_size=bytes_max,
        on_rejected=lambda: ui.notify("This file is too large.", type="negative"),
    ).props("send-raw accept=.jsonl flat bordered")
    area.add_slot("header", _HEADER)
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
