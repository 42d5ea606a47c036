"""What goes wrong with online requests, as their clients see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from starlette.responses import Response

from batch_gateway.api.errors import (
    SERVER_ERROR,
    ErrorDetail,
    ErrorEnvelope,
    HttpRefusal,
    error_response,
    shown,
)
from vllm_batch.online import RefusalReason

RETRY_SECONDS = "2"
BUSY_RETRY_SECONDS = "1"
_FINAL = {"timeout": 504, "engine_crash": 500, "answer_too_large": 500}
"""Errors that the same request would only meet again; the others are a 503."""


class Broken(Exception):
    """A worker had the request, and there is no (further) answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        """The HTTP status of an answer that has not begun."""
        return _FINAL.get(self.code, 503)

    def response(self) -> Response:
        """Return the answer where nothing of one was sent yet."""
        retry = {"x-should-retry": "false"} if self.code in _FINAL else {"retry-after": "1"}
        return error_response(self.status, str(self), code=self.code, headers=retry)

    def event(self) -> bytes:
        """Return the server-sent event that ends an answer which has begun."""
        envelope = ErrorEnvelope(ErrorDetail(str(self), SERVER_ERROR, None, self.code))
        return b"data: %b\n\n" % msgspec.json.encode(envelope)


def overloaded() -> HttpRefusal:
    """Return the error for more than there is room for."""
    return HttpRefusal(
        429,
        "All workers of this model are busy; please try again in a moment.",
        code="overloaded",
        headers={"retry-after": BUSY_RETRY_SECONDS},
    )


def not_now(model: str, reasons: Collection[RefusalReason]) -> HttpRefusal:
    """Return the error for a model whose workers are there and took no request for these
    reasons."""
    why = "its engine is starting" if "not_ready" in reasons else "its worker stops or is swapping"
    return HttpRefusal(
        503,
        f"The model '{shown(model)}' takes no request just now: {why}; please try again in a "
        "moment.",
        param="model",
        code="model_not_ready",
        headers={"retry-after": RETRY_SECONDS},
    )


def nobody_there(model: str, served: Sequence[str]) -> HttpRefusal:
    """Return the error for a model that nobody serves just now."""
    there = f"Served now: {', '.join(map(shown, served))}." if served else "No model is served now."
    return HttpRefusal(
        503,
        f"No worker serves the model '{shown(model)}' at the moment. {there}",
        param="model",
        code="model_not_served",
        headers={"retry-after": RETRY_SECONDS},
    )


def unknown_model(model: str, served: Sequence[str]) -> HttpRefusal:
    """Return the error for a name that means no model."""
    there = f" Served now: {', '.join(map(shown, served))}." if served else ""
    return HttpRefusal(
        404,
        f"The model '{shown(model)}' does not exist or you do not have access to it.{there}",
        param="model",
        code="model_not_found",
    )
