"""Managing API keys over HTTP (beyond OpenAI): what ``vllm-batch keys`` does, for programs.

Appends ``apikey.*`` with the key that asked; a new secret is in the answer that made it and nowhere
else. Lists come from the read models.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta
from starlette.responses import Response

from batch_gateway.api.answers import answer, documented, takes
from batch_gateway.api.dependencies import Api, CalledBy
from batch_gateway.api.errors import shown
from batch_gateway.api.reads import unix
from batch_gateway.api.request_body import Body, checked_integer, invalid, read_object, wrong_type
from vllm_batch import api_keys, ids
from vllm_batch.errors import NotFound
from vllm_batch.ids import KeyId
from vllm_batch.projections.rows import ApiKeyRow

router = APIRouter(prefix="/admin/keys", tags=["Admin"])

EXPIRY_SECONDS_MAX = 10 * 365 * 24 * 3600
OLD_SECONDS_MAX = 30 * 24 * 3600
OLD_SECONDS = 24 * 3600
_NAME = re.compile(r"[\w.-]{1,64}")


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key. ``secret`` is there once, when it is new. Times in Unix seconds."""

    id: str
    object: str = "api_key"
    project: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: int
    expires_at: int | None = None
    rotated_at: int | None = None
    revoked_at: int | None = None
    secret: str | None = None


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """All keys, revoked ones too, the oldest first."""

    object: str = "list"
    data: list[Key]


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a key, for the OpenAPI document; read by hand, for clear errors."""

    project: Annotated[str, Meta(pattern=_NAME.pattern)] = "default"
    name: Annotated[str, Meta(pattern=_NAME.pattern)] = "default"
    scopes: list[str] = msgspec.field(default_factory=lambda: sorted(api_keys.DEFAULT_SCOPES))
    expires_in_seconds: Annotated[int, Meta(ge=1, le=EXPIRY_SECONDS_MAX)] | None = None


def _key(row: ApiKeyRow, secret: str | None = None) -> Key:
    return Key(
        id=row.key_id, project=row.project, name=row.name, prefix=row.prefix, scopes=row.scopes,
        created_at=row.created_at, expires_at=row.expires_at, rotated_at=row.rotated_at,
        revoked_at=row.revoked_at, secret=secret,
    )  # fmt: skip


def _named(body: Body, param: str) -> str:
    value = body.get(param, "default")
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if not _NAME.fullmatch(value):
        raise invalid(param, "1 to 64 letters, digits, dots, dashes, underscores")
    return value


def _scopes(body: Body) -> list[str]:
    value = body.get("scopes", [])
    if not isinstance(value, list):
        raise wrong_type("scopes", "an array of strings", value)
    for item in value:
        if item not in api_keys.SCOPES:
            known = ", ".join(sorted(api_keys.SCOPES))
            raise invalid("scopes", f"{shown(str(item))!r} is none of {known}")
    return sorted(set(value))


@router.get("", responses=documented(Keys))
async def list_keys(api: Api, _: CalledBy) -> Response:
    """List the keys."""
    await api.reads.catch_up(await api.store.last_sequence())  # those of the call before are there
    lists = await api.reads.fresh_lists()
    return answer(Keys(data=[_key(row) for row in await lists.api_keys()]))


@router.post("", responses=documented(Key), openapi_extra=takes(KeyRequest))
async def create_key(request: Request, api: Api, caller: CalledBy) -> Response:
    """Make a key; the answer shows its secret, this once."""
    body = await read_object(request, api.settings)
    now = unix(api.clock.now())
    expires_at = None
    if (seconds := body.get("expires_in_seconds")) is not None:
        expires_at = now + checked_integer(seconds, "expires_in_seconds", 1, EXPIRY_SECONDS_MAX)
    event, secret = await api_keys.create(
        api.store, project=_named(body, "project"), name=_named(body, "name"),
        scopes=_scopes(body), expires_at=expires_at, requested_by=caller.key_id,
    )  # fmt: skip
    made = Key(
        id=event.key_id, project=event.project, name=event.name, prefix=event.prefix,
        scopes=event.scopes, created_at=now, expires_at=expires_at, secret=secret,
    )  # fmt: skip
    return answer(made)


@router.post("/{key_id}/rotate", responses=documented(Key))
async def rotate_key(key_id: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Give a key a new secret; the old one counts for ``keep_old_seconds`` more (one day)."""
    body = await read_object(request, api.settings)
    keep = body.get("keep_old_seconds", OLD_SECONDS)
    seconds = checked_integer(keep, "keep_old_seconds", 0, OLD_SECONDS_MAX)
    event, secret = await api_keys.rotate(
        api.store, _checked_id(key_id), old_until=api.clock.now() + timedelta(seconds=seconds),
        requested_by=caller.key_id,
    )  # fmt: skip
    return answer({"id": key_id, "prefix": event.prefix, "old_until": event.old_until,
                   "secret": secret})  # fmt: skip


@router.delete("/{key_id}")
async def revoke_key(key_id: str, api: Api, caller: CalledBy) -> Response:
    """Let a key open nothing any more."""
    await api_keys.revoke(api.store, _checked_id(key_id), requested_by=caller.key_id)
    return answer({"id": key_id, "object": "api_key", "revoked": True})


def _checked_id(key_id: str) -> KeyId:
    if not ids.is_token(key_id):
        raise NotFound(f"there is no key {shown(key_id)}")
    return KeyId(key_id)
