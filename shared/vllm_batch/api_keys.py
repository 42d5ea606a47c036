"""Making, rotating and revoking API keys. A secret is shown once; only its SHA-256 is recorded.

Scopes say what a key opens in its project: ``read`` looks at everything, ``batch`` uploads files
and runs batches, ``inference`` asks models directly, ``admin`` opens all of it and the management
of the whole service.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Collection
from datetime import datetime

from vllm_batch import ids
from vllm_batch.errors import AlreadyDone, Conflict, NotFound, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked, ApiKeyRotated, Event, Recorded
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.messaging import subjects

PREFIX = "sk-vb-"
READ, BATCH, INFERENCE, ADMIN = "read", "batch", "inference", "admin"
DEFAULT_SCOPES = frozenset({READ, BATCH, INFERENCE})
SCOPES = DEFAULT_SCOPES | {ADMIN}
_SECRET_BYTES = 24
_VISIBLE = len(PREFIX) + 4
_GIVEN_CHARACTERS_MIN = 32
_Decide = Callable[[Event | None], Event]


def digest(secret: str) -> str:
    """Return what is recorded of a key: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    """Return a secret that nobody can guess (192 bits)."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


async def create(
    store: EventStore,
    *,
    project: str = "default",
    name: str = "default",
    scopes: Collection[str] = (),
    expires_at: int | None = None,
    requested_by: str | None = None,
    given: str | None = None,
) -> tuple[ApiKeyCreated, str]:
    """Record a new key of ``project``; return its event and the secret, which is nowhere kept.

    ``scopes``: without any, DEFAULT_SCOPES. ``expires_at``: Unix seconds. ``given``: a secret that
    was made elsewhere; it is recorded once, so that a deployment may say it at every start: a key
    that has been rotated or revoked since stays so.

    Raises:
        Rejected: the given secret is too short to be one.
    """
    if given is not None and len(given) < _GIVEN_CHARACTERS_MIN:
        raise Rejected(f"a key has at least {_GIVEN_CHARACTERS_MIN} random characters")
    secret = new_secret() if given is None else given
    event = ApiKeyCreated(
        key_id=KeyId(ids.derived("key_", digest(secret))),
        project=ProjectId(project),
        name=name,
        prefix=secret[:_VISIBLE],
        sha256=digest(secret),
        scopes=sorted(scopes or DEFAULT_SCOPES),
        expires_at=expires_at,
        requested_by=requested_by,
    )
    with contextlib.suppress(Conflict):  # a secret of our own is new, so its id is
        await store.append(event, expected=0)
    return event, secret


async def rotate(
    store: EventStore, key_id: KeyId, *, old_until: datetime, requested_by: str | None = None
) -> tuple[ApiKeyRotated, str]:
    """Give a key a new secret and return it; the old one counts until ``old_until``.

    Raises:
        NotFound: there is no such key.
        Rejected: it is revoked.
    """
    secret = new_secret()
    event = ApiKeyRotated(
        key_id=key_id,
        prefix=secret[:_VISIBLE],
        sha256=digest(secret),
        old_until=int(old_until.timestamp()),
        requested_by=requested_by,
    )

    def decide(last: Event | None) -> Event:
        if last is None:
            raise NotFound(f"there is no key {key_id}")
        if isinstance(last, ApiKeyRevoked):
            raise Rejected(f"key {key_id} is revoked; make a new one")
        return event

    await _append(store, key_id, decide)
    return event, secret


async def revoke(store: EventStore, key_id: KeyId, *, requested_by: str | None = None) -> Recorded:
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
        return ApiKeyRevoked(key_id=key_id, requested_by=requested_by)

    return await _append(store, key_id, decide)


async def _append(store: EventStore, key_id: KeyId, decide: _Decide) -> Recorded:
    recorded, _ = await append_decided(
        store, subjects.aggregate("apikey", key_id), lambda _, recorded: recorded.event, decide
    )
    return recorded
