"""What the overview says somebody should look at."""

from __future__ import annotations

from nats.aio.client import Client
from tests.facts import START, append

from batch_admin.attention import troubles
from batch_admin.live import Live
from batch_admin.open_batches import Queue
from vllm_batch.clock import ManualClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import WorkerReady, WorkerStarted
from vllm_batch.ids import WorkerId


async def test_work_for_a_model_that_nobody_serves_needs_attention() -> None:
    store = MemoryEventStore()
    live = Live(store, Client(), ManualClock(START))
    queues = {"m": Queue(requests=1200, ready=3), "busy": Queue(requests=5, leased=1)}
    assert troubles(live, [], queues, None) == [
        ("1,200 requests wait for m: no worker serves it", "/models")
    ]
    worker = WorkerId("w")
    recorded = await append(
        store,
        WorkerStarted(worker_id=worker, name="w", host="h", pid=1, engine="e", version="1"),
        WorkerReady(worker_id=worker, models=["m"], in_flight_max=8),
    )
    for one in recorded:
        live._apply(one)
    assert troubles(live, [], queues, None) == []
