"""The keys in memory follow their events."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from batch_gateway.api.access import opened_by, root_of
from batch_gateway.api.authentication import Caller, KeyRing
from vllm_batch import api_keys
from vllm_batch.errors import NotFound, Rejected
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.ids import KeyId, ProjectId


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore()


async def test_keys_open_their_project_until_they_are_revoked(store: MemoryEventStore) -> None:
    first, opens_first = await api_keys.create(store, project="one")
    _, opens_second = await api_keys.create(store, project="two")
    keys = KeyRing(store)
    await keys.load()
    caller = keys.find(f"Bearer {opens_first}")
    assert caller == ("one", first.key_id, api_keys.DEFAULT_SCOPES)
    changed = asyncio.Event()
    following = asyncio.create_task(keys.follow(changed.set))
    await api_keys.revoke(store, first.key_id)
    _, opens_third = await api_keys.create(store, project="three")
    async with asyncio.timeout(5):
        while keys.find(f"Bearer {opens_third}") is None:
            changed.clear()
            await changed.wait()
    assert keys.find(f"Bearer {opens_first}") is None
    assert keys.find(f"BEARER  {opens_second} ") is not None
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@pytest.mark.parametrize(
    "header", [None, "", " ", "Bearer", "Bearer ", "Basic x", "Bearer sk-vb-unknown", "sk-vb-x"]
)
async def test_everything_else_opens_nothing(store: MemoryEventStore, header: str | None) -> None:
    await api_keys.create(store)
    keys = KeyRing(store)
    await keys.load()
    assert keys.find(header) is None


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def ring(store: MemoryEventStore, clock: Clock) -> KeyRing:
    keys = KeyRing(store, clock)
    await keys.load()
    return keys


async def test_a_key_expires(store: MemoryEventStore, clock: Clock) -> None:
    until = int(clock.time.timestamp()) + 60
    _, secret = await api_keys.create(store, expires_at=until)
    keys = await ring(store, clock)
    clock.time += timedelta(seconds=59)
    assert keys.find(f"Bearer {secret}") is not None
    clock.time += timedelta(seconds=1)
    assert keys.find(f"Bearer {secret}") is None


async def test_a_rotated_key_has_two_secrets_for_a_while(
    store: MemoryEventStore, clock: Clock
) -> None:
    key, first = await api_keys.create(store, scopes=[api_keys.READ])
    day = timedelta(days=1)
    _, second = await api_keys.rotate(store, key.key_id, old_until=clock.time + day)
    _, third = await api_keys.rotate(store, key.key_id, old_until=clock.time + 2 * day)
    keys = await ring(store, clock)
    callers = {keys.find(f"Bearer {secret}") for secret in (first, second, third)}
    assert len(callers) == 1
    assert None not in callers
    clock.time += day
    assert [keys.find(f"Bearer {s}") is None for s in (first, second, third)] == [
        True, False, False,
    ]  # fmt: skip
    clock.time += day
    assert keys.find(f"Bearer {second}") is None
    assert keys.find(f"Bearer {third}") is not None
    await api_keys.revoke(store, key.key_id)
    assert (await ring(store, clock)).find(f"Bearer {third}") is None
    with pytest.raises(Rejected, match="revoked"):
        await api_keys.rotate(store, key.key_id, old_until=clock.time)
    with pytest.raises(NotFound):
        await api_keys.rotate(store, KeyId("key_none"), old_until=clock.time)


async def test_a_rotation_does_not_outlive_the_key(store: MemoryEventStore, clock: Clock) -> None:
    until = int(clock.time.timestamp()) + 60
    key, first = await api_keys.create(store, expires_at=until)
    old_until = clock.time + timedelta(days=9)
    _, second = await api_keys.rotate(store, key.key_id, old_until=old_until)
    keys = await ring(store, clock)
    clock.time += timedelta(seconds=60)
    assert keys.find(f"Bearer {first}") is keys.find(f"Bearer {second}") is None


@pytest.mark.parametrize(
    ("method", "path", "openers"),
    [
        ("GET", "/v1/batches", {"read", "batch"}),
        ("GET", "/v1/files/file-x/content", {"read", "batch"}),
        ("POST", "/v1/batches", {"batch"}),
        ("DELETE", "/v1/files/file-x", {"batch"}),
        ("POST", "/v1/webhook_endpoints", {"batch"}),
        ("POST", "/v1/chat/completions", {"inference"}),
        ("POST", "/v1/inference", {"inference"}),
        ("GET", "/v1/models", {"read", "batch", "inference"}),
        ("GET", "/v1/models/a/b", {"read", "batch", "inference"}),
        ("GET", "/admin/workers", set()),
        ("POST", "/admin/keys", set()),
    ],
)
def test_what_opens_a_call(method: str, path: str, openers: set[str]) -> None:
    scopes = opened_by(method, path)
    for scope in sorted(api_keys.SCOPES):
        caller = Caller(ProjectId("p"), KeyId("key_1"), frozenset({scope}))
        opens = any(map(caller.may, scopes))
        assert opens == (scope in openers or scope == "admin"), scope


@pytest.mark.parametrize("path", ["/healthz", "/v1x", "/", "/administration", "/docs"])
def test_what_is_open_to_all(path: str) -> None:
    assert root_of(path) is None
