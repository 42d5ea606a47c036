"""``POST /v1/webhooks/label-studio``: the same on the gateway and on the bridge.

Checks the shared secret before it reads the body, and answers when the delivery is recorded, or
cannot be: Label Studio waits one second and asks nobody twice. What is refused leaves nothing.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobError, EventStoreError, InvalidInput
from vllm_batch.event_store import EventStore
from vllm_batch.labeling import deliveries
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

PATH = "/v1/webhooks/label-studio"
SECRET_HEADER = "X-Webhook-Secret"  # noqa: S105 - a header's name


@dataclass(frozen=True)
class WebhookEndpoint:
    """Takes deliveries in. ``is_connected`` tells whether the log could answer at all."""

    store: EventStore
    blobs: BlobStore
    settings: Settings
    is_connected: Callable[[], bool]

    async def answer(self, request: Request) -> Response:
        """Record one delivery; 200 with ``status`` recorded, known or ignored, else an error."""
        if refusal := self._refusal(request):
            return refusal
        limit = self.settings.label_studio_webhook_bytes_max
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                return _error(413, f"The delivery is larger than {limit} bytes.")
        try:
            parsed = deliveries.parse(bytes(body))
        except InvalidInput as error:
            return _error(400, str(error), param=error.param)
        if parsed is None:
            log.info("a delivery is nothing to us", bytes=len(body))
            return _status("ignored")
        return await self._record(*parsed)

    def _refusal(self, request: Request) -> Response | None:
        secret = self.settings.label_studio_webhook_secret.get_secret_value()
        if not secret:
            return _error(
                503,
                "No webhook secret is set, so nobody may deliver: set "
                "VLLM_BATCH_LABEL_STUDIO_WEBHOOK_SECRET and restart.",
                code="not_configured",
            )
        given = request.headers.get(SECRET_HEADER, "")
        if not hmac.compare_digest(given.encode(), secret.encode()):
            return _error(
                401, f"The header {SECRET_HEADER} is missing or wrong.", code="invalid_secret"
            )
        declared = request.headers.get("content-length", "")
        limit = self.settings.label_studio_webhook_bytes_max
        if declared.isdigit() and int(declared) > limit:
            return _error(413, f"The delivery is larger than {limit} bytes.")
        return None

    async def _record(self, action: str, body: deliveries.Body) -> Response:
        if not self.is_connected():
            return _later(action, "not connected")
        try:
            async with asyncio.timeout(self.settings.label_studio_webhook_seconds):
                is_new = await deliveries.record(self.store, self.blobs, action, body)
        except RecursionError:
            return _error(400, "The body is nested too deep.")
        except (TimeoutError, EventStoreError, BlobError) as error:
            return _later(action, repr(error))
        return _status("recorded" if is_new else "known")


def _later(action: str, why: str) -> Response:
    log.warning("a delivery was not recorded", action=action, why=why)
    return _error(
        503,
        "The delivery could not be recorded now; the reconciler will find it.",
        code="event_store_unavailable",
    )


def _status(word: str) -> Response:
    return Response(msgspec.json.encode({"status": word}), media_type="application/json")


def _error(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Response(
        msgspec.json.encode({"error": error}), status_code=status, media_type="application/json"
    )
