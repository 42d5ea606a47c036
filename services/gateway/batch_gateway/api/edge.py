"""The outermost layer of the API: what is the same for every request.

Gives each answer an ``x-request-id`` and its processing time, asks for the key before anybody
looks at ids or bodies, and turns what nobody caught into a 500 in the envelope.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batch_gateway.api.authentication import Caller, KeyRing
from batch_gateway.api.errors import error_response, internal_error
from vllm_batch import api_keys
from vllm_batch.clock import Clock

log = structlog.get_logger(__name__)

GUARDED = ("/v1", "/admin")
ADMIN = "/admin"


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyRing, clock: Clock, new_id: Callable[[str], str]
    ) -> None:
        self._app = app
        self._keys = keys
        self._clock = clock
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
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
            await send(message)

        try:
            app = self._refusal(scope) or self._app
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

    def _refusal(self, scope: Scope) -> Response | None:
        """Note who is calling; return a 401 where a key is asked for and none fits, a 403 where it
        does not open that much."""
        path = scope["path"]
        root = next((root for root in GUARDED if path == root or path.startswith(f"{root}/")), None)
        if root is None:
            return None
        authorization = Headers(scope=scope).get("authorization")
        caller = self._keys.find(authorization)
        if caller is None:
            return error_response(
                401,
                "Incorrect API key provided."
                if authorization
                else "No API key provided: send it as 'Authorization: Bearer <key>'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        if root == ADMIN and api_keys.ADMIN not in caller.scopes:
            return error_response(
                403,
                "This key may not manage the service; make one with "
                "`vllm-batch keys create --scope admin`.",
                code="insufficient_permissions",
            )
        scope.setdefault("state", {})["caller"] = caller
        return None


def caller_of(scope: Scope) -> Caller:
    """Return who is calling; every guarded route has one."""
    caller: Caller = scope["state"]["caller"]
    return caller
