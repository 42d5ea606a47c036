"""The outermost layer of the API: what is the same for every request.

Gives each answer an ``x-request-id``, its processing time and the headers of its limits, has the
gate look at the call first, and turns what nobody caught into a 500 in the envelope.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batch_gateway.api.errors import internal_error
from batch_gateway.api.gate import Gate
from vllm_batch.clock import Clock
from vllm_batch.http_server import DATA_HEADERS

log = structlog.get_logger(__name__)


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, *, gate: Gate, clock: Clock, new_id: Callable[[str], str]
    ) -> None:
        self._app = app
        self._gate = gate
        self._clock = clock
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            app = self._gate.refusal(scope) or self._app
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id("req_")
        started = self._clock.monotonic()
        answered = False

        async def send_marked(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                elapsed = self._clock.monotonic() - started
                headers["openai-processing-ms"] = str(round(elapsed * 1000))
                headers.update(DATA_HEADERS)
                headers.update(scope.get("state", {}).get("headers", {}))
            await send(message)

        try:
            app = self._gate.refusal(scope) or self._app
            await app(scope, receive, send_marked)
        except ClientDisconnect:
            log.debug("client left", request_id=request_id, path=scope["path"])
        except Exception:
            # Outermost: a client gets the envelope for a bug too, unless it already has a part of
            # the answer; then the connection breaks, so that it cannot take the part for the whole.
            log.exception("unexpected error", request_id=request_id, path=scope["path"])
            if answered:
                raise
            await internal_error()(scope, receive, send_marked)
