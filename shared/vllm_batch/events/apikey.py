"""Events of an API key. The key itself is never recorded, only its SHA-256."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from vllm_batch.events.base import Event
from vllm_batch.ids import KeyId, ProjectId


class _ApiKeyEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("key_id",)

    key_id: KeyId


class ApiKeyCreated(_ApiKeyEvent, frozen=True, kw_only=True):
    """A key was made; ``prefix`` is its visible beginning, ``sha256`` the hex digest of the whole.

    ``scopes``: what it opens besides files, batches and inference of its project (``admin``).
    """

    TYPE: ClassVar[str] = "apikey.created"

    project: ProjectId
    name: str
    prefix: str
    sha256: str
    scopes: list[str] = msgspec.field(default_factory=list)


class ApiKeyRevoked(_ApiKeyEvent, frozen=True, kw_only=True):
    """The key opens nothing any more."""

    TYPE: ClassVar[str] = "apikey.revoked"


ApiKeyEvent = ApiKeyCreated | ApiKeyRevoked
