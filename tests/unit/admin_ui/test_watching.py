"""A page misses nothing that happens while it is being built, and looks again after a silence."""

from __future__ import annotations

from nats.aio.client import Client
from tests.facts import run_a_batch

from batch_admin.live import Live, noun_of
from vllm_batch.clock import SystemClock
from vllm_batch.event_store.memory import MemoryEventStore


async def test_what_came_since_a_page_began_to_be_built_wakes_it() -> None:
    store = MemoryEventStore()
    await run_a_batch(store)
    live = Live(store, Client(), SystemClock())
    async for batch in store.read(">"):
        live.recent.extend(batch)
    with live.watch({"chunk"}, after=4) as watch:
        events = await watch.wait(5.0)
        assert [event.seq for event in events] == [5, 6, 7, 8, 9, 10]
        assert {noun_of(event) for event in events} == {"chunk"}


async def test_a_silence_ends_by_itself() -> None:
    live = Live(MemoryEventStore(), Client(), SystemClock())
    with live.watch({"worker"}, after=0) as watch:
        assert await watch.wait(0.01) == []
