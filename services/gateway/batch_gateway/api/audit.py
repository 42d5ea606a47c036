"""Every call that manages the service is on record before it is done, with the key that made it.

Writes ``admin.action_taken`` before each call under ``/admin`` that is no mere look, and
``admin.action_failed`` where it was refused; what a call changed has events of its own besides.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batch_gateway.api.access import changes_the_service
from batch_gateway.api.errors import error_response
from batch_gateway.api.gate import caller_of
from vllm_batch.errors import EventStoreError
from vllm_batch.event_store import EventStore
from vllm_batch.events.admin import AdminActionFailed, AdminActionTaken

log = structlog.get_logger(__name__)

TARGET_CHARACTERS_MAX = 500


class Audit:
    """ASGI middleware behind the gate: it knows who is calling."""

    def __init__(self, app: ASGIApp, *, store: EventStore, new_id: Callable[[str], str]) -> None:
        self._app = app
        self._store = store
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not changes_the_service(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            taken, seq = await self._taken(scope)
        except EventStoreError as error:
            log.warning("refused: it could not be put on record", error=str(error))
            message = "This cannot be done now: it could not be put on record. Try again."
            refusal = error_response(503, message, code=error.code, headers={"retry-after": "1"})
            await refusal(scope, receive, send)
            return
        status: int | None = None

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            if status is None or status >= 400:
                await self._failed(taken, seq, status)

    async def _taken(self, scope: Scope) -> tuple[AdminActionTaken, int]:
        caller = caller_of(scope)
        event = AdminActionTaken(
            user_id=caller.key_id,
            action_id=self._new_id("action_"),
            name=caller.key_id,
            action=scope["method"],
            target=scope["path"][:TARGET_CHARACTERS_MAX],
        )
        return event, (await self._store.append(event, expected=0)).seq

    async def _failed(self, taken: AdminActionTaken, seq: int, status: int | None) -> None:
        reason = "there was no answer" if status is None else f"answered {status}"
        failed = AdminActionFailed(user_id=taken.user_id, action_id=taken.action_id, reason=reason)
        try:
            await self._store.append(failed, expected=seq)
        except EventStoreError as error:
            log.warning("a refusal is not on record", action=taken.action_id, error=str(error))
