"""Who may come in: a key that opens the call, of a project that is open and within its limits."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from batch_gateway.api.access import HEALTH_PAGE, INFERENCE_PATHS, opened_by, root_of, starts_work
from batch_gateway.api.authentication import Caller, KeyRing
from batch_gateway.api.errors import error_response
from batch_gateway.api.rates import Rates, Verdict
from vllm_batch.clock import Clock
from vllm_batch.project_limits import ProjectLimits


class Gate:
    """Looks at each call before anybody looks at its ids or its body."""

    def __init__(self, keys: KeyRing, limits: ProjectLimits, rates: Rates, clock: Clock) -> None:
        self._clock = clock
        self._keys = keys
        self._limits = limits
        self._rates = rates

    def refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a call that may not come in.

        Notes in ``scope["state"]`` who is calling, and the headers that the answer is to have.
        """
        path, method = scope["path"], scope.get("method", "GET")  # a WebSocket begins as a GET
        if root_of(path) is None:
            return None
        headers = Headers(scope=scope)
        authorization = headers.get("authorization")
        for_people = path == HEALTH_PAGE and method in {"GET", "HEAD"}
        if for_people:
            authorization = _password_as_key(authorization)
        caller = self._keys.find(authorization)
        if caller is None:
            ask = for_people and "text/html" in headers.get("accept", "")
            return _ask_for_password() if ask else _unknown(authorization)
        scopes = opened_by(method, path)
        if not any(map(caller.may, scopes)):
            return _not_allowed(scopes)
        if self._limits.is_closed(caller.project):
            return error_response(
                403, "This project was closed and its data deleted.", code="project_closed"
            )
        state = scope.setdefault("state", {})
        state["caller"] = caller
        return self._over_limit(caller, scope) if starts_work(method, path) else None

    def _over_limit(self, caller: Caller, scope: Scope) -> Response | None:
        if self._limits.out_of_budget(caller.project, self._clock.now()):
            return _out_of_budget()
        limits = self._limits.of(caller.project)
        verdict = self._rates.take(caller.project, limits, online=scope["path"] in INFERENCE_PATHS)
        scope["state"]["headers"] = verdict.headers
        return _too_many(verdict) if verdict.short_of is not None else None


def _password_as_key(authorization: str | None) -> str | None:
    """Return a header whose password (HTTP's Basic scheme) is a key as if the key were given.

    Browsers send passwords by themselves, from other sites too: only for what changes nothing.
    """
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return None
    return f"Bearer {secret}"


def _ask_for_password() -> Response:
    return PlainTextResponse(
        "Give an API key with the scope admin as the password; the name does not matter.\n",
        status_code=401,
        headers={"www-authenticate": 'Basic realm="vllm-batch: an admin API key as password"'},
    )


def _unknown(authorization: str | None) -> Response:
    return error_response(
        401,
        "Incorrect API key provided, or one that has expired."
        if authorization
        else "No API key provided: send it as 'Authorization: Bearer <key>'.",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def _not_allowed(scopes: Sequence[str]) -> Response:
    return error_response(
        403,
        f"This key may not do that; it takes the scope {' or '.join(scopes)}. Make one "
        f"with `vllm-batch keys create --scope {scopes[0]}`.",
        code="insufficient_permissions",
    )


def _out_of_budget() -> Response:
    return error_response(
        429,
        "This project has used up its budget of this month; ask for more "
        "(`vllm-batch project limit --budget-per-month`).",
        code="insufficient_quota",
        headers={"x-should-retry": "false"},
    )


def _too_many(verdict: Verdict) -> Response:
    return error_response(
        429,
        f"Rate limit reached for {verdict.short_of}: this project has {verdict.limit} per minute. "
        f"Please try again in {verdict.retry_seconds}s.",
        code="rate_limit_exceeded",
        headers={"retry-after": str(verdict.retry_seconds)},
    )


def caller_of(scope: Scope) -> Caller:
    """Return who is calling; every guarded route has one."""
    caller: Caller = scope["state"]["caller"]
    return caller
