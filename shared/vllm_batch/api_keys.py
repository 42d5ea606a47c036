"""Making and revoking API keys. The key is shown once; only its SHA-256 is recorded."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection

from vllm_batch import ids
from vllm_batch.errors import AlreadyDone, NotFound
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked, Event, Recorded
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.messaging import subjects

PREFIX = "sk-vb-"
ADMIN = "admin"
"""The scope that opens the management of workers."""
SCOPES = frozenset({ADMIN})
_SECRET_BYTES = 24
_VISIBLE = len(PREFIX) + 4


def digest(secret: str) -> str:
    """Return what is recorded of a key: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


async def create(
    store: EventStore,
    *,
    project: str = "default",
    name: str = "default",
    scopes: Collection[str] = (),
) -> tuple[ApiKeyCreated, str]:
    """Record a new key of ``project``; return its event and the secret, which is nowhere kept."""
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    event = ApiKeyCreated(
        key_id=KeyId(ids.new("key_")),
        project=ProjectId(project),
        name=name,
        prefix=secret[:_VISIBLE],
        sha256=digest(secret),
        scopes=sorted(scopes),
    )
    await store.append(event, expected=0)
    return event, secret


async def revoke(store: EventStore, key_id: KeyId) -> Recorded:
    """Record that a key opens nothing any more.

    Raises:
        NotFound: there is no such key.
        AlreadyDone: it is revoked already.
    """

    def decide(last: Event | None) -> Event:
        if last is None:
            raise NotFound(f"there is no key {key_id}")
        if isinstance(last, ApiKeyRevoked):
            raise AlreadyDone(f"key {key_id} is already revoked")
        return ApiKeyRevoked(key_id=key_id)

    recorded, _ = await append_decided(
        store, subjects.aggregate("apikey", key_id), lambda _, recorded: recorded.event, decide
    )
    return recorded
