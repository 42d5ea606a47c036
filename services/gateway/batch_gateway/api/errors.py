"""From errors to OpenAI's error envelope: the only place that knows both.

Every error an API client can meet leaves here as
``{"error": {"message", "type", "param", "code"}}`` with all four keys, whatever raised it: our own
tree, the framework's 404, 405 and validation, or a bug. A bug's words stay in the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route

from batch_gateway.webhooks.signing import NoSecretKey
from vllm_batch.errors import (
    AlreadyDone,
    BatchError,
    BlobError,
    Conflict,
    EventStoreUnavailable,
    InvalidInput,
    NotFound,
    ProjectionUnavailable,
    Rejected,
    StorageFull,
)

log = structlog.get_logger(__name__)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_TYPES = {403: "permission_error", 429: "rate_limit_exceeded"}
CLIENT_CLOSED_REQUEST = 499
SHOWN_CHARACTERS_MAX = 100


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong, as OpenAI clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every error answer."""

    error: ErrorDetail


class HttpRefusal(Exception):
    """An error that only HTTP has a word for: 401, 405, 410, 413, 416 and the like."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def shown(value: str) -> str:
    """Return a user's text cut to a length that fits into a message."""
    return value if len(value) <= SHOWN_CHARACTERS_MAX else value[:SHOWN_CHARACTERS_MAX] + "…"


def missing(param: str) -> InvalidInput:
    """Return the error for a parameter that has to be there."""
    return InvalidInput(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def too_large(what: str, bytes_max: int) -> HttpRefusal:
    """Return the error for a body or a file over its limit."""
    return HttpRefusal(413, f"{what} is larger than the limit of {bytes_max} bytes.")


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an envelope. A 409 asks the client not to retry: nothing changes by waiting."""
    kind = SERVER_ERROR if status >= 500 else _TYPES.get(status, INVALID_REQUEST)
    envelope = ErrorEnvelope(ErrorDetail(message, kind, param, code))
    extra = dict(headers or {})
    if status == 409:
        extra.setdefault("x-should-retry", "false")
    return Response(
        msgspec.json.encode(envelope),
        status_code=status,
        headers=extra,
        media_type="application/json",
    )


def internal_error() -> Response:
    """Return what a client sees of a bug."""
    return error_response(500, "The server had an error while processing your request.")


def response_to(error: Exception) -> Response:
    """Return the answer to an error of any kind; what is not known here is a 500."""
    match error:
        case HttpRefusal():
            return error_response(
                error.status,
                str(error),
                param=error.param,
                code=error.code,
                headers=error.headers,
            )
        case InvalidInput():
            return error_response(400, str(error), param=error.param, code=error.detail_code)
        case NotFound():
            return error_response(404, str(error))
        case AlreadyDone() | Rejected():
            return error_response(409, str(error))
        case StorageFull():
            # The same bytes would meet the same full disk: waiting for room is not a client's job.
            return error_response(
                507,
                "The server has no space left to store this; nothing of it was kept.",
                code=error.code,
                headers={"x-should-retry": "false"},
            )
        case _:
            return _response_to_outage(error)


def _response_to_outage(error: Exception) -> Response:
    if isinstance(error, NoSecretKey):
        unavailing = {"x-should-retry": "false"}
        return error_response(503, str(error), code=error.code, headers=unavailing)
    messages: dict[type[BatchError], str] = {
        EventStoreUnavailable: "The event log cannot be reached at the moment; please try again.",
        ProjectionUnavailable: "The lists in the database are away or behind; please try again.",
        Conflict: "Too many changes at the same time; please try again.",
        BlobError: "The file store had an error; please try again.",
    }
    for kind, message in messages.items():
        if isinstance(error, kind):
            log.warning("answered 503", error=repr(error))
            return error_response(503, message, code=kind.code, headers={"retry-after": "1"})
    log.error("request failed", exc_info=error)
    return internal_error()


async def _on_known(_: Request, error: Exception) -> Response:
    return response_to(error)


async def _on_framework(
    routes: Sequence[BaseRoute], request: Request, error: Exception
) -> Response:
    if not isinstance(error, HTTPException):  # the framework's signature says any error
        raise error
    where = f"({request.method} {shown(request.url.path)})"
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            message = f"Invalid URL {where}"
        case 405:
            message = f"Not allowed method for this URL {where}"
            headers = {"allow": ", ".join(_allowed_methods(routes, request))}
        case _:
            message = str(error.detail)
    return error_response(error.status_code, message, headers=headers)


def _allowed_methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """Return the methods of all routes at this path; the framework names those of one route."""
    return sorted(
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    )


async def _on_validation(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    param = str(first["loc"][-1]) if first["loc"] else None
    return error_response(
        400, f"Invalid value for '{param}': {first['msg']}.", param=param, code="invalid_value"
    )


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody is there to read it


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Let ``app``, which serves ``routes``, answer every error in the envelope."""
    app.add_exception_handler(HttpRefusal, _on_known)
    app.add_exception_handler(BatchError, _on_known)
    app.add_exception_handler(HTTPException, partial(_on_framework, routes))
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
