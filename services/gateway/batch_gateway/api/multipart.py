"""Reading multipart/form-data as it arrives: one part after the other, in constant memory.

`python_multipart` finds the boundaries; this module turns its callbacks into an iterator of parts
whose content is pulled from the client only as fast as it is taken.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from batch_gateway.api.errors import too_large
from vllm_batch.errors import InvalidInput

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# The library's own reading of this header drops the directories of Windows paths; we keep names as
# they were sent.
_PARAMETER = re.compile(r';\s*([^=;\s]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_FORM_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}
_FORM_ESCAPE = re.compile("|".join(_FORM_ESCAPES), re.IGNORECASE)


class Part:
    """A field of the form. Take its content before asking for the next part."""

    def __init__(self, form: Form, disposition: str) -> None:
        parameters = _parameters(disposition)
        self.name = parameters.get("name", "")
        self.filename = parameters.get("filename")
        self._form = form

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the content in the pieces it arrives in."""
        while (piece := await self._form.next_piece()) is not None:
            yield piece

    async def text(self, bytes_max: int) -> str:
        """Return the content of a short field.

        Raises:
            HttpRefusal: 413, it is longer than ``bytes_max``.
            InvalidInput: it is not UTF-8.
        """
        content = bytearray()
        async for piece in self.chunks():
            content += piece
            if len(content) > bytes_max:
                raise too_large(f"The form field '{self.name}'", bytes_max)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"The form field '{self.name}' is not UTF-8.", param=self.name
            ) from error


class Form:
    """A multipart body that is being received.

    Raises:
        InvalidInput: the content type is another one, or has no boundary.
    """

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidInput("This call takes a multipart/form-data body.")
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise InvalidInput(f"The multipart body cannot be read: {error}.") from error
        self._body = aiter(body)
        self._items: deque[Part | bytes | None] = deque()
        self._field, self._value = bytearray(), bytearray()
        self._disposition = ""
        self._ended = False

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the parts in the order they were sent; what nobody took of one is skipped.

        Raises:
            InvalidInput: the body is malformed or ends too early.
        """
        while True:
            while not self._items and not self._ended:
                await self._pull()
            if not self._items:
                return
            item = self._items.popleft()
            if isinstance(item, Part):
                yield item

    async def next_piece(self) -> bytes | None:
        """Return the next piece of the present part; None at its end."""
        while not self._items:
            await self._pull()
        item = self._items.popleft()
        if isinstance(item, Part):  # somebody reads on after the end
            self._items.appendleft(item)
            return None
        return item

    async def _pull(self) -> None:
        piece = await anext(self._body, None)
        if piece is None:
            raise InvalidInput("The multipart body ends before its last boundary.")
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidInput(f"The multipart body cannot be read: {error}.") from error

    def _on_part_begin(self) -> None:
        self._disposition = ""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = _decoded(bytes(self._value))
        self._field, self._value = bytearray(), bytearray()

    def _on_headers_finished(self) -> None:
        self._items.append(Part(self, self._disposition))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._items.append(data[start:end])

    def _on_part_end(self) -> None:
        self._items.append(None)

    def _on_end(self) -> None:
        self._ended = True


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _parameters(disposition: str) -> dict[str, str]:
    """Return the parameters of a Content-Disposition header.

    Browsers and HTTP libraries escape quotes and line ends in names as %22, %0D and %0A (the HTML
    standard) or with backslashes (RFC 822). ``filename*`` (RFC 5987) counts where it stands alone.
    """
    found: dict[str, str] = {}
    for name, quoted, bare in _PARAMETER.findall(disposition):
        value = _ESCAPED.sub(r"\1", quoted) if quoted else bare.strip()
        key = name.lower()
        if key == "filename*":
            charset, _, rest = value.partition("'")
            if charset.lower() == "utf-8":
                found.setdefault("filename", unquote(rest.partition("'")[2]))
            continue
        found[key] = _FORM_ESCAPE.sub(lambda match: _FORM_ESCAPES[match[0].upper()], value)
    return found
