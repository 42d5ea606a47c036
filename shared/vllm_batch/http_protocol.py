"""HTTP/1.1 as our servers take it in: heads of calls are bounded in bytes, number and time, and
what is no HTTP is refused in the API's own form.

A subclass of uvicorn's parser (0.54), which bounds nothing of this. Used by `http_server` alone.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vllm_batch.settings import Settings


class _HeadTooLarge(Exception):
    """Raised inside the parser, which ends the call with `send_400_response`."""


class BoundedHttp(HttpToolsProtocol):
    """One connection. `with_limits` makes the class that uvicorn takes."""

    header_bytes_max: int
    headers_max: int
    header_seconds: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._fed_bytes = 0
        self._in_head = True
        self._refusal: tuple[int, str] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came in."""
        if self.transport.is_closing():
            return
        if self._in_head:
            self._fed_bytes += len(data)
        super().data_received(data)
        # A header that has not come to its end is with the parser, not with us yet.
        if self._in_head and self._fed_bytes > self.header_bytes_max:
            self._refuse_head()

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = True
        if self._deadline is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Count the path and query."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; the four more are its colon, space and line end."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)
        if len(self.headers) > self.headers_max:
            self._refusal = (431, f"The request has more than {self.headers_max} headers.")
            raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        """The head is there: its call begins."""
        self._in_head, self._fed_bytes = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too large, in the API's envelope."""
        status, message = self._refusal or (400, f"{msg} Is this HTTP/1.1?")
        code = {400: "invalid_http", 408: "request_timeout", 431: "headers_too_large"}[status]
        said = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": said}).encode()
        self._stop_waiting()
        if self.cycle is None or self.cycle.response_complete:  # else an answer is under way
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
                "content-type: application/json\r\n"
                f"content-length: {len(body)}\r\n"
                "x-content-type-options: nosniff\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _count(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self.header_bytes_max:
            self._refusal = self._too_large()
            raise _HeadTooLarge

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            self._refusal = self._too_large()
            self.send_400_response("")

    def _too_large(self) -> tuple[int, str]:
        limit = self.header_bytes_max
        return 431, f"The request line and headers are larger than {limit} bytes."

    def _expect_head(self) -> None:
        self._in_head, self._fed_bytes = True, 0
        self._deadline = self.loop.call_later(self.header_seconds, self._took_too_long)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _took_too_long(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if not self._fed_bytes:  # nobody asked for anything
            self.transport.close()
            return
        self._refusal = (408, f"The headers took longer than {self.header_seconds:g} s to come.")
        self.send_400_response("")


def with_limits(settings: Settings) -> type[BoundedHttp]:
    """Return the protocol with the limits of the settings."""
    limits = {
        "header_bytes_max": settings.http_header_bytes_max,
        "headers_max": settings.http_headers_max,
        "header_seconds": settings.http_header_seconds,
    }
    return type("LimitedHttp", (BoundedHttp,), limits)
