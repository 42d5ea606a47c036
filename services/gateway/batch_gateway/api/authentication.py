"""Who is calling: API keys, kept in memory as a fold of their events.

Reads ``apikey.>`` to its end at the start and follows it afterwards, so a key that was made or
revoked anywhere counts here within milliseconds, and no request, valid or not, costs a look-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog

from batch_gateway.api.streaming import closing
from vllm_batch import api_keys
from vllm_batch.event_store import EventStore
from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked, Recorded
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0


class Caller(NamedTuple):
    """The project a request acts for, the key it came with, and what else that key opens."""

    project: ProjectId
    key_id: KeyId
    scopes: frozenset[str] = frozenset()


class KeyRing:
    """All keys that open something, by the SHA-256 of their secret."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._callers: dict[str, Caller] = {}
        self._digests: dict[KeyId, str] = {}
        self._position = 0

    def find(self, authorization: str | None) -> Caller | None:
        """Return who an ``Authorization`` header stands for; None if it opens nothing."""
        scheme, _, secret = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not secret:
            return None
        return self._callers.get(api_keys.digest(secret.strip()))

    async def load(self) -> None:
        """Take in every key there is now."""
        async for batch in self._store.read(subjects.ALL_API_KEYS):
            self._apply_all(batch)

    async def follow(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Take in what comes, for ever. Start it after `load`."""
        while True:
            try:
                events = self._store.follow([subjects.ALL_API_KEYS], after=self._position)
                async with closing(events) as batches:
                    async for batch in batches:
                        self._apply_all(batch)
                        on_change()
            except Exception:  # the outermost loop of this duty
                log.exception("following API keys failed; starting anew", after=self._position)
                await asyncio.sleep(RETRY_SECONDS)

    def _apply_all(self, batch: list[Recorded]) -> None:
        for recorded in batch:
            self._apply(recorded)
            self._position = recorded.seq

    def _apply(self, recorded: Recorded) -> None:
        match recorded.event:
            case ApiKeyCreated(key_id=key_id, project=project, sha256=sha256, scopes=scopes):
                self._callers[sha256] = Caller(project, key_id, frozenset(scopes))
                self._digests[key_id] = sha256
            case ApiKeyRevoked(key_id=key_id):
                self._callers.pop(self._digests.pop(key_id, ""), None)
