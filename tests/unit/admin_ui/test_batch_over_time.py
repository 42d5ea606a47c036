"""What the pages of one batch fold from its events: throughput, segments, any earlier state."""

from __future__ import annotations

import pytest
from tests.facts import append, leased, planned, progressed, run_a_batch, submitted

from batch_admin.batch_history import BatchHistory
from batch_admin.open_batches import OpenBatches
from batch_admin.time_travel import Travel, in_order
from vllm_batch.event_store import memory
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import JobCancelRequested, JobStarted, JobWindowClosed, Recorded
from vllm_batch.ids import JobId

JOB = JobId("batch_1")


async def _events(store: MemoryEventStore) -> list[Recorded]:
    return [recorded async for batch in store.read(">") for recorded in batch]


async def test_only_what_is_new_is_read_again() -> None:
    store = MemoryEventStore()
    await run_a_batch(store, JOB)
    history = BatchHistory(store, JOB)
    await history.catch_up()
    await history.catch_up()
    assert sum(rate for _, rate in history.throughput()) == 8
    assert len(history.newest) == 2
    assert history.take_failed() == ["s"]
    assert history.take_failed() == []
    await append(store, progressed(JOB, 1, 5, 1))
    await history.catch_up()
    assert sum(rate for _, rate in history.throughput()) == 14
    assert history.take_failed() == ["s"]


async def test_other_batches_do_not_count() -> None:
    store = MemoryEventStore()
    await run_a_batch(store, "batch_2")
    history = BatchHistory(store, JOB)
    await history.catch_up()
    assert history.throughput() == []


async def test_any_earlier_state_is_the_same_whichever_way_one_comes() -> None:
    store = MemoryEventStore()
    await run_a_batch(store, JOB)
    events = await _events(store)
    travel = Travel(events)
    forwards = [travel.after(count).shown(JOB) for count in range(len(events) + 1)]
    backwards = [travel.after(count).shown(JOB) for count in reversed(range(len(events) + 1))]
    assert forwards == backwards[::-1]
    assert forwards[0]["status"] == "not submitted"
    assert forwards[-1]["requests_done"] == 8
    assert forwards[-1]["chunks_by_last_event"] == {"progressed": 1, "leased": 1}


async def test_a_batch_is_read_in_the_order_of_the_log_up_to_when_it_was_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "BATCH_EVENTS_MAX", 2)
    store = MemoryEventStore()
    await run_a_batch(store, "batch_2")
    await run_a_batch(store, JOB)
    await append(store, JobCancelRequested(job_id=JOB))
    expected = [one for one in await _events(store) if one.event.aggregate_id()[0] == JOB]
    read, parts = [], 0
    async for events in in_order(store, JOB):
        read += events
        parts += 1
        if parts == 1:
            await append(store, progressed(JOB, 1, 5, 1), JobWindowClosed(job_id=JOB))
    assert read == expected
    assert parts > 2


async def test_a_batch_that_is_made_while_it_is_looked_for_is_not_there_yet() -> None:
    class Late(MemoryEventStore):
        async def last_sequence(self) -> int:
            position = await super().last_sequence()
            await run_a_batch(self, JOB)
            return position

    assert [events async for events in in_order(Late(), JOB)] == []


async def test_one_may_jump_back_and_forth_in_a_long_history() -> None:
    store = MemoryEventStore()
    chunks = 1200
    await append(store, submitted(JOB))
    for chunk in range(chunks):
        await store.append(planned(JOB, chunk), expected=0)
    travel = Travel(await _events(store))
    for count in (1200, 3, 1100, 1001, 999):
        assert sum(travel.after(count).shown(JOB)["chunks_by_last_event"].values()) == count - 1


async def test_an_open_batch_counts_failures_and_says_how_long_it_takes() -> None:
    store = MemoryEventStore()
    await append(
        store,
        submitted(JOB),
        planned(JOB, 0),
        JobStarted(job_id=JOB, total=10, chunks=1, model="m"),
        leased(JOB, 0),
        progressed(JOB, 0, 4, 1),
    )
    batches = OpenBatches()
    for recorded in await _events(store):
        batches.apply(recorded)
    batch = batches.batches[JOB]
    assert (batch.done, batch.failed) == (5, 1)
    assert batch.started_at is not None
    assert batches.queues()["m"].requests == 5
