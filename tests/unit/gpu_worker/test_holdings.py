"""Which request goes next: jobs take turns, chunks of a job in order."""

from __future__ import annotations

import pytest
from tests.unit.gpu_worker.bench import held

from batch_gpu_worker.holdings import HeldChunk, Holdings
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import Usage
from vllm_batch.ids import JobId
from vllm_batch.segments import Result


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore()


def taken(holdings: Holdings, count: int) -> list[tuple[str, int, int]]:
    requests = [holdings.take() for _ in range(count)]
    return [(r.chunk.job_id, r.chunk.number, r.index) for r in requests if r is not None]


async def test_a_job_goes_chunk_by_chunk_in_order(store: MemoryEventStore) -> None:
    holdings = Holdings()
    for number in (0, 1):
        holdings.add(await held(store, "batch_a", number, count=2))
    assert holdings.waiting == 4
    assert taken(holdings, 9) == [
        ("batch_a", 0, 0), ("batch_a", 0, 1), ("batch_a", 1, 0), ("batch_a", 1, 1),
    ]  # fmt: skip
    assert holdings.waiting == 0
    assert len(holdings) == 2  # they are held until they are handed in


async def test_jobs_take_turns_and_one_that_just_came_begins(store: MemoryEventStore) -> None:
    holdings = Holdings()
    holdings.add(await held(store, "batch_big", count=5))
    taken(holdings, 1)
    holdings.add(await held(store, "batch_small", count=2))
    order = [job for job, _, _ in taken(holdings, 6)]
    assert order == [
        "batch_small",
        "batch_big",
        "batch_small",
        "batch_big",
        "batch_big",
        "batch_big",
    ]


async def test_what_is_dropped_is_not_begun(store: MemoryEventStore) -> None:
    holdings = Holdings()
    dropped = await held(store, "batch_a", count=5)
    holdings.add(dropped)
    holdings.add(await held(store, "batch_b", count=1))
    holdings.drop_waiting(dropped)
    holdings.drop_waiting(dropped)
    assert holdings.waiting == 1
    assert taken(holdings, 5) == [("batch_b", 0, 0)]
    assert [chunk.job_id for chunk in holdings] == ["batch_a", "batch_b"]
    holdings.remove(dropped)
    assert len(holdings) == 1
    assert holdings.of_job(JobId("batch_a")) == []


async def test_recorded_results_are_not_worked_out_again(store: MemoryEventStore) -> None:
    first = await held(store, count=3)
    chunk = HeldChunk(first.lease, [b"a", b"b", b"c"], done={0, 2})
    assert chunk.unanswered == 1
    holdings = Holdings()
    holdings.add(chunk)
    assert taken(holdings, 3) == [("batch_j", 0, 1)]


async def test_a_chunk_is_due_when_every_request_has_a_result(store: MemoryEventStore) -> None:
    chunk = await held(store, count=2)
    chunk.add(Result(0, False, b"{}\n"), Usage(1))
    assert not chunk.due
    chunk.add(Result(1, True, b"{}\n"), Usage())
    assert chunk.due
    assert chunk.usage == Usage(1)
