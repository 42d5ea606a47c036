"""The event store's contract, held by JetStream and by its twin in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from vllm_batch import ids
from vllm_batch.errors import Conflict
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.memory import MemoryEventStore, matches
from vllm_batch.events import ChunkLeased, ChunkPlanned, JobCancelRequested, Recorded
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.messaging import subjects


@pytest.fixture(params=["memory", "jetstream"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    if request.param == "memory":
        yield MemoryEventStore()
    else:
        # getfixturevalue cannot start an async fixture from inside a running loop.
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(request.getfixturevalue("settings"), source="test") as opened:
            yield opened


def planned(job: str, number: int) -> ChunkPlanned:
    return ChunkPlanned(
        job_id=JobId(job), chunk=number, blob="files/f", offset=0, length=10, first_line=1, count=1,
        endpoint="/v1/chat/completions", model="m",
    )  # fmt: skip


def leased(job: str, number: int, epoch: int) -> ChunkLeased:
    return ChunkLeased(job_id=JobId(job), chunk=number, epoch=epoch, worker_id=WorkerId("w"))


async def everything(store: EventStore, subject: str, after: int = 0) -> list[Recorded]:
    return [event async for batch in store.read(subject, after=after) for event in batch]


async def test_an_append_comes_back_as_it_was_written(store: EventStore) -> None:
    recorded = await store.append(planned("j", 0), expected=0)
    assert await everything(store, "chunk.>") == [recorded]
    assert recorded.seq == await store.last_sequence() == 1


async def test_the_expected_sequence_spans_all_event_types_of_the_aggregate(
    store: EventStore,
) -> None:
    first = await store.append(planned("j", 0), expected=0)
    other = await store.append(planned("j", 1), expected=0)
    with pytest.raises(Conflict):
        await store.append(leased("j", 0, 1), expected=0)
    with pytest.raises(Conflict):
        await store.append(leased("j", 0, 1), expected=other.seq)
    second = await store.append(leased("j", 0, 1), expected=first.seq)
    assert second.seq == 3


async def test_the_same_event_appended_again_is_found_not_repeated(store: EventStore) -> None:
    event_id = ids.new_event_id()
    once = await store.append(planned("j", 0), expected=0, event_id=event_id)
    again = await store.append(planned("j", 0), expected=0, event_id=event_id)
    assert again.seq == once.seq
    assert await store.last_sequence() == 1


async def test_of_many_rivals_exactly_one_wins(store: EventStore) -> None:
    first = await store.append(planned("j", 0), expected=0)
    results = await asyncio.gather(
        *(store.append(leased("j", 0, 1), expected=first.seq) for _ in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Recorded) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 19


async def test_reading_selects_by_wildcard_and_sequence(store: EventStore) -> None:
    for number in range(5):
        await store.append(planned("a", number), expected=0)
        await store.append(planned("b", number), expected=0)
    of_a = await everything(store, subjects.chunks_of(JobId("a")))
    assert [event.seq for event in of_a] == [1, 3, 5, 7, 9]
    assert [event.seq for event in await everything(store, "chunk.>", after=7)] == [8, 9, 10]
    assert await everything(store, subjects.job(JobId("a"))) == []


async def test_reading_goes_past_one_batch(store: EventStore) -> None:
    await asyncio.gather(*(store.append(planned("j", n), expected=0) for n in range(1203)))
    found = await everything(store, "chunk.>")
    assert [event.seq for event in found] == list(range(1, 1204))


async def test_following_yields_what_is_and_what_comes(store: EventStore) -> None:
    await store.append(planned("j", 0), expected=0)
    seen: list[Recorded] = []

    async def follow() -> None:
        async for batch in store.follow(["chunk.>", "job.>"], after=0):
            seen.extend(batch)
            if len(seen) == 3:
                return

    task = asyncio.create_task(follow())
    await store.append(planned("j", 1), expected=0)
    await store.append(JobCancelRequested(job_id=JobId("j")), expected=0)
    await asyncio.wait_for(task, 120)
    assert [event.seq for event in seen] == [1, 2, 3]


async def test_logs_have_an_identity(store: EventStore) -> None:
    assert await store.identity() == await store.identity() != ""


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*.c", "a.b.c", True),
        (">", "a", True),
    ],
)
def test_wildcards(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected
