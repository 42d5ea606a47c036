"""Who is calling: API keys, kept in memory as a fold of their events.

Reads ``apikey.>`` to its end at the start and follows it afterwards, so a key that was made or
revoked anywhere counts here within milliseconds, and no request, valid or not, costs a look-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from vllm_batch import api_keys
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.folds import keep_up, take_in
from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked, ApiKeyRotated, Recorded
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.messaging import subjects

_CLOCK = SystemClock()


class Caller(NamedTuple):
    """The project a request acts for, the key it came with, and what that key opens."""

    project: ProjectId
    key_id: KeyId
    scopes: frozenset[str] = api_keys.DEFAULT_SCOPES

    def may(self, scope: str) -> bool:
        """Tell whether the key opens ``scope``."""
        return scope in self.scopes or api_keys.ADMIN in self.scopes


class _Opening(NamedTuple):
    """What a secret opens, and until when (Unix seconds)."""

    caller: Caller
    until: float = math.inf


class KeyRing:
    """All keys that open something, by the SHA-256 of their secret."""

    def __init__(self, store: EventStore, clock: Clock = _CLOCK) -> None:
        self._store = store
        self._clock = clock
        self._openings: dict[str, _Opening] = {}
        self._digests: dict[KeyId, list[str]] = {}
        self.position = 0

    def find(self, authorization: str | None) -> Caller | None:
        """Return who an ``Authorization`` header stands for; None if it opens nothing (now)."""
        scheme, _, secret = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not secret:
            return None
        found = self._openings.get(api_keys.digest(secret.strip()))
        if found is None or self._clock.now().timestamp() >= found.until:
            return None
        return found.caller

    def still_counts(self, caller: Caller) -> bool:
        """Tell whether a key that was found before opens anything now."""
        now = self._clock.now().timestamp()
        digests = self._digests.get(caller.key_id, ())
        return any(now < self._openings[digest].until for digest in digests)

    async def load(self) -> None:
        """Take in every key there is now."""
        await take_in(self._store, subjects.ALL_API_KEYS, self)

    async def follow(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Take in what comes, for ever. Start it after `load`."""
        await keep_up(self._store, subjects.ALL_API_KEYS, self, on_change)

    def apply(self, recorded: Recorded) -> None:
        """Take one event in."""
        self.position = recorded.seq
        match recorded.event:
            case ApiKeyCreated() as created:
                caller = Caller(created.project, created.key_id, frozenset(created.scopes))
                until = math.inf if created.expires_at is None else float(created.expires_at)
                self._openings[created.sha256] = _Opening(caller, until)
                self._digests[created.key_id] = [created.sha256]
            case ApiKeyRotated() as rotated if rotated.key_id in self._digests:
                self._rotate(rotated, self._digests[rotated.key_id])
            case ApiKeyRevoked(key_id=key_id):
                for sha256 in self._digests.pop(key_id, ()):
                    self._openings.pop(sha256, None)

    def _rotate(self, rotated: ApiKeyRotated, digests: list[str]) -> None:
        newest = self._openings[digests[-1]]
        self._openings[rotated.sha256] = newest
        for sha256 in digests:  # a secret that was replaced before keeps its earlier end
            opening = self._openings[sha256]
            until = min(opening.until, float(rotated.old_until))
            self._openings[sha256] = opening._replace(until=until)
        digests.append(rotated.sha256)
