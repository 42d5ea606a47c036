"""The sign-in page: plain HTML and a form, so that it needs no script, and signing out.

Reads the users from the live layer; records every sign-in.
"""

from __future__ import annotations

import asyncio
import html
import secrets
from pathlib import Path
from urllib.parse import parse_qs

import structlog
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from batch_admin import audit
from batch_admin.services import Services
from batch_admin.sessions import COOKIE, FORM_COOKIE, Attempts, Sessions, SignIn
from vllm_batch import admin_users
from vllm_batch.admin_users import AdminUser
from vllm_batch.errors import EventStoreUnavailable

log = structlog.get_logger(__name__)

_FORM_BYTES_MAX = 8192
_ADDRESS_FACTOR = 10
_PAGE = Path(__file__).with_name("login.html")
_NOBODY = (  # verified where there is no such user, so that both take the same time
    "$argon2id$v=19$m=65536,t=3,p=4$DIZqEuKUGDJ/ua3mGmocgA$"
    "bZeJ4n4AbzwxXooXJwL/dnx8wcl64CQ1Wk7i4S5VHfw"
)


def create_router(services: Services, sessions: Sessions) -> APIRouter:
    """Return the routes of signing in and out."""
    router = APIRouter()
    monotonic, count = services.clock.monotonic, services.metrics.sign_ins.labels
    by_name = Attempts(services.settings, monotonic)
    # Many people may share an address; whoever tries many names does so from one.
    by_address = Attempts(services.settings, monotonic, factor=_ADDRESS_FACTOR)

    @router.get("/health")
    async def health() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @router.get("/signed-in")
    async def signed_in() -> Response:
        return Response(status_code=204)  # the gate says no

    @router.get("/login")
    async def form(request: Request) -> Response:
        if request.state.sign_in is not None:
            return RedirectResponse("/", status_code=303)
        return _form(services, sessions, request, next_path=request.query_params.get("next", "/"))

    @router.post("/login")
    async def sign_in(request: Request) -> Response:
        values = await _values(request)
        name, next_path = values.get("name", ""), values.get("next", "/")
        if not sessions.is_form_token(request.cookies.get(FORM_COOKIE), values.get("token", "")):
            count("forged").inc()
            return _form(services, sessions, request, next_path, ("Please try again.", 403))
        address = request.client.host if request.client else ""
        person = f"{name.lower()[:64]} {address}"
        if wait := max(by_name.wait_seconds(person), by_address.wait_seconds(address)):
            count("throttled").inc()
            message = f"Too many wrong passwords. Try again in {wait:.0f} s."
            return _form(services, sessions, request, next_path, (message, 429))
        by_name.note_failure(person)  # before the hash takes its time: guesses in parallel count
        by_address.note_failure(address)
        user = await _check(services, name, values.get("password", ""))
        if user is None:
            count("wrong").inc()
            log.warning("wrong name or password", name=name[:64], address=address)
            message = "The name or the password is wrong."
            return _form(services, sessions, request, next_path, (message, 401))
        count("ok").inc()
        by_name.forget(person)
        by_address.forget(address)
        action_id, _ = await audit.taken(services.store, user, "sign in", user.name)
        value = sessions.cookie_of(user, action_id)
        return _signed_in(services, request, value, next_path)

    @router.post("/logout")
    async def sign_out(request: Request) -> Response:
        await _end(services, request.state.sign_in)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE)
        return answer

    return router


async def _end(services: Services, sign_in: SignIn) -> None:
    user = sign_in.user(services.live.users, services.clock.now())
    if user is None:
        return
    try:
        await audit.taken(services.store, user, admin_users.SIGN_OUT, sign_in.action_id)
    except EventStoreUnavailable as error:  # the browser forgets it all the same
        log.warning("a sign-out was not recorded", user=user.name, error=str(error))


async def _values(request: Request) -> dict[str, str]:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES_MAX:
            return {}
    found = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
    return {name: values[0] for name, values in found.items()}


async def _check(services: Services, name: str, password: str) -> AdminUser | None:
    user = services.live.users.find(admin_users.user_id_of(name))
    password_hash = _NOBODY if user is None else user.password_hash
    right = await asyncio.to_thread(admin_users.is_password, password_hash, password)
    return user if right else None


def _form(
    services: Services,
    sessions: Sessions,
    request: Request,
    next_path: str,
    refusal: tuple[str, int] = ("", 200),
) -> Response:
    message, status = refusal
    cookie = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(24)
    if not message and not services.live.users.all():
        message = "Nobody may sign in yet: run `vllm-batch admin user add NAME --role admin`."
    page = _PAGE.read_text(encoding="utf-8")
    for name, value in (
        ("message", message), ("token", sessions.form_token(cookie)), ("next", next_path),
    ):  # fmt: skip
        page = page.replace(f"[[{name}]]", html.escape(value, quote=True))
    answer = HTMLResponse(page, status_code=status, headers={"Cache-Control": "no-store"})
    _keep(answer, request, FORM_COOKIE, cookie, seconds=None)
    return answer


def _signed_in(services: Services, request: Request, cookie: str, next_path: str) -> Response:
    local = next_path.startswith("/") and not next_path.startswith(("//", "/\\"))
    answer = RedirectResponse(next_path if local else "/", status_code=303)
    seconds = services.settings.admin_session_seconds
    _keep(answer, request, COOKIE, cookie, seconds=seconds)
    return answer


def _keep(
    answer: Response, request: Request, name: str, value: str, *, seconds: int | None
) -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(name, value, max_age=seconds, httponly=True, samesite="lax", secure=secure)
