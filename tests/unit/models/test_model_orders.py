"""What is refused because of the other models that are registered."""

from __future__ import annotations

import pytest

from vllm_batch import model_orders
from vllm_batch.errors import Rejected
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.model_orders import Registration


async def register(store: MemoryEventStore, name: str, base: str | None = None) -> None:
    asked = Registration(name=name, source=f"org/{name}", base=base, aliases=[f"alias-of-{name}"])
    await model_orders.register(store, asked, requested_by="test")


@pytest.fixture
async def store() -> MemoryEventStore:
    """Two base models, and an adapter of the first."""
    store = MemoryEventStore()
    await register(store, "a")
    await register(store, "c")
    await register(store, "tuned", base="a")
    return store


async def test_a_base_that_has_adapters_becomes_none_itself(store: MemoryEventStore) -> None:
    with pytest.raises(Rejected, match="a is the base of tuned"):
        await register(store, "a", base="c")
    await register(store, "a")
    await register(store, "c", base="a")


async def test_an_adapter_is_no_base(store: MemoryEventStore) -> None:
    with pytest.raises(Rejected, match="tuned is itself an adapter"):
        await register(store, "more", base="tuned")


@pytest.mark.parametrize("base", ["c", "alias-of-c"])
async def test_a_model_is_not_its_own_base(store: MemoryEventStore, base: str) -> None:
    with pytest.raises(Rejected, match="c cannot be an adapter of itself"):
        await register(store, "c", base=base)
