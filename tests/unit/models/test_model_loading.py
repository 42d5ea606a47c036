"""Watching a model being loaded: nothing that is reported meanwhile is missed."""

from __future__ import annotations

import asyncio

import pytest

from vllm_batch import ids, model_loading, model_orders
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events.model import ModelFailed, ModelRegistered
from vllm_batch.ids import WorkerId

KEY = ids.model_key("m")


async def test_a_failure_that_comes_as_soon_as_the_request_is_known_is_seen() -> None:
    store = MemoryEventStore()
    registered = ModelRegistered(model_key=KEY, name="m", source="m", requested_by="test")
    await store.append(registered, expected=0)
    asked = await model_orders.load(store, "m", worker=None, requested_by="test")
    said: list[str] = []

    def tell(text: str) -> None:
        if not said:  # a worker answers before anything else happens here
            failed = ModelFailed(
                model_key=KEY, worker_id=WorkerId("w"), worker_name="gpu-1", reason="no memory"
            )
            with pytest.raises(StopIteration):
                store.append(failed, expected=asked.seq).send(None)
        said.append(text)

    async with asyncio.timeout(30):
        await model_loading.load(
            store, "m", worker=None, requested_by="test", on_progress=tell, wait_seconds=60
        )
    assert said[-1] == "gpu-1: failed: no memory"
