"""The keys in memory follow their events."""

from __future__ import annotations

import asyncio

import pytest

from batch_gateway.api.authentication import KeyRing
from vllm_batch import api_keys
from vllm_batch.event_store.memory import MemoryEventStore


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore()


async def test_keys_open_their_project_until_they_are_revoked(store: MemoryEventStore) -> None:
    first, opens_first = await api_keys.create(store, project="one")
    _, opens_second = await api_keys.create(store, project="two")
    keys = KeyRing(store)
    await keys.load()
    caller = keys.find(f"Bearer {opens_first}")
    assert caller == ("one", first.key_id, frozenset())
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
