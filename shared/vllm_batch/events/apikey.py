"""Events of an API key. The key itself is never recorded, only its SHA-256."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from vllm_batch.events.base import Event
from vllm_batch.ids import KeyId, ProjectId


class _ApiKeyEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("key_id",)
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"sha256"})

    key_id: KeyId


class ApiKeyCreated(_ApiKeyEvent, frozen=True, kw_only=True):
    """A key was made; ``prefix`` is its visible beginning, ``sha256`` the hex digest of the whole.

    ``scopes``: what it opens, see `api_keys`. ``expires_at``: in Unix seconds, None for never.
    """

    TYPE: ClassVar[str] = "apikey.created"
    VERSION: ClassVar[int] = 2

    project: ProjectId
    name: str
    prefix: str
    sha256: str
    scopes: list[str] = msgspec.field(default_factory=list)
    expires_at: int | None = None
    requested_by: str | None = None


class ApiKeyRotated(_ApiKeyEvent, frozen=True, kw_only=True):
    """The key has a new secret; the one before it opens the same until ``old_until`` (Unix
    seconds)."""

    TYPE: ClassVar[str] = "apikey.rotated"

    prefix: str
    sha256: str
    old_until: int
    requested_by: str | None = None


class ApiKeyRevoked(_ApiKeyEvent, frozen=True, kw_only=True):
    """The key opens nothing any more."""

    TYPE: ClassVar[str] = "apikey.revoked"
    VERSION: ClassVar[int] = 2

    requested_by: str | None = None


ApiKeyEvent = ApiKeyCreated | ApiKeyRotated | ApiKeyRevoked
