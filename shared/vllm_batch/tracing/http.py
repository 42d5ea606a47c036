"""HTTP: a span per request that we answer, in the client's trace; its context in those we send."""

from __future__ import annotations

from typing import Any

from vllm_batch import tracing
from vllm_batch.metrics.http import App, Message, Receive, Scope, Send
from vllm_batch.tracing import SpanKind

_OURS = frozenset(name.encode() for name in tracing.HEADER_NAMES)
_NOT_TRACED = frozenset({"/healthz", "/readyz", "/health"})

NO_SECOND_SPANS: Any = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's argument ``telemetry``: 0.165 makes spans of its own beside ours unless told not to.
Releases that know no such argument take it all the same."""


class Traced:
    """Names are OpenTelemetry's semantic conventions for HTTP servers."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _NOT_TRACED:
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        given = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _OURS
        }
        with (
            tracing.continued(given),
            tracing.span(
                method, SpanKind.SERVER,
                {"http.request.method": method, "url.path": scope["path"]},
            ) as span,
        ):  # fmt: skip

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            try:
                await self._app(scope, receive, noting)
            finally:
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.set_attribute("http.route", route)
                    span.update_name(f"{method} {route}")


async def pass_on(request: Any) -> None:
    """Put the present context into a request of an ``httpx`` client: its event hook ``request``."""
    request.headers.update(tracing.headers())
