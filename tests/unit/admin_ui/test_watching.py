"""A page misses nothing that happens while it is being built, and looks again after a silence."""

from __future__ import annotations

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from tests.facts import START, append, run_a_batch

from batch_admin.live import ENDED_PULSE_SECONDS, Live, noun_of
from vllm_batch.clock import ManualClock, SystemClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import Event, WorkerStarted, WorkerStopped
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId


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


async def test_only_the_pulses_of_processes_that_matter_are_kept() -> None:
    store, clock = MemoryEventStore(), ManualClock(START)
    live = Live(store, Client(), clock)

    async def record(*events: Event) -> None:
        for recorded in await append(store, *events):
            live._apply(recorded)

    async def start(name: str, number: int) -> None:
        worker_id = WorkerId(f"{name}_{number}")
        await record(
            WorkerStarted(
                worker_id=worker_id, name=name, host="h", pid=number, engine="e", version="1"
            )
        )
        await beat(name, number)

    async def beat(name: str, number: int) -> None:
        said = Heartbeat(
            worker_id=WorkerId(f"{name}_{number}"), name=name, host="h", pid=number, time=START,
            state="ready", engine="e",
        )  # fmt: skip
        await live._hear(Msg(Client(), data=msgspec.json.encode(said)))

    for number in range(3):
        await start("often", number)
    await beat("often", 0)  # its last one came late
    await start("gone", 0)
    await start("silent", 0)
    await record(WorkerStopped(worker_id=WorkerId("gone_0"), reason="drained"))
    assert set(live.pulses) == {"often_2", "gone_0", "silent_0"}
    clock.advance(ENDED_PULSE_SECONDS + 1)
    await start("often", 3)
    assert set(live.pulses) == {"often_3", "silent_0"}
