"""Who may come in: signed-in users only, and only from pages of our own.

An ASGI middleware in front of everything, NiceGUI's socket and files included. Puts the sign-in
into ``scope["state"]["sign_in"]``.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batch_admin.sessions import COOKIE, Sessions

OPEN_PATHS = frozenset({"/login", "/health"})
_SECURITY = {
    # Vue compiles the templates of NiceGUI's elements in the browser, hence 'unsafe-eval'.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
}


class Gate:
    """See the module."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or send it away."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sign_in = self._sessions.sign_in_of(cookie(headers, COOKIE))
        scope.setdefault("state", {})["sign_in"] = sign_in
        if not _is_same_origin(headers, scope):
            await _refuse(scope, receive, send, "This request came from another site.")
        elif sign_in is None and scope["path"] not in OPEN_PATHS:
            await _to_login(scope, receive, send)
        else:
            await self._app(scope, receive, _with_security(send))


def cookie(headers: Headers, name: str) -> str | None:
    """Return a cookie's value."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return None
    return None if found is None else found.value


def _is_same_origin(headers: Headers, scope: Scope) -> bool:
    origin = headers.get("origin")
    if origin is None or (scope["type"] == "http" and scope["method"] in {"GET", "HEAD"}):
        return True
    return urlsplit(origin).netloc == headers.get("host")


async def _to_login(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" or "text/html" not in Headers(scope=scope).get("accept", ""):
        await _refuse(scope, receive, send, "Sign in first.", status=401)
        return
    there = "/"
    if scope["method"] == "GET":
        query = scope["query_string"].decode()
        there = scope["path"] + (f"?{query}" if query else "")
    answer = RedirectResponse(f"/login?next={quote(there)}", status_code=303)
    await answer(scope, receive, send)


async def _refuse(
    scope: Scope, receive: Receive, send: Send, text: str, *, status: int = 403
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    await PlainTextResponse(text + "\n", status_code=status)(scope, receive, send)


def _with_security(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY.items():
                headers[name] = value
        await send(message)

    return sending
