"""Hints and leadership over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.conftest import NatsServer

from vllm_batch import ids, tasks
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects, topology
from vllm_batch.messaging.consumer import Hint, HintQueue, Outcome
from vllm_batch.messaging.leadership import Leadership, leader_of
from vllm_batch.settings import Settings

KEY = ids.model_key("a model / with $odd chars.*>")


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_each_hint_is_taken_once_by_one_of_many_workers(
    event_store: JetStreamEventStore,
) -> None:
    queue = HintQueue(event_store.js, KEY)
    for number in range(40):
        await queue.offer(Hint(JobId("j"), number))
    taken: list[int] = []

    async def handler(hint: Hint) -> Outcome:
        taken.append(hint.chunk)
        return Outcome.DONE

    async def worker() -> None:
        mine = HintQueue(event_store.js, KEY)
        while len(taken) < 40:
            await mine.take(handler, wait_seconds=0.5)
        await mine.close()

    async with asyncio.timeout(60):
        await asyncio.gather(*(worker() for _ in range(4)))
        while (await event_store.js.stream_info(topology.WORK)).state.messages:
            await asyncio.sleep(0.01)
    assert sorted(taken) == list(range(40))


async def test_a_hint_that_is_put_back_comes_again_and_a_rejected_one_does_not(
    event_store: JetStreamEventStore,
) -> None:
    queue = HintQueue(event_store.js, KEY)
    await queue.offer(Hint(JobId("j"), 1))
    await event_store.js.publish(subjects.work(KEY), b"no hint at all")
    outcomes = iter([Outcome.RETRY_LATER, Outcome.DONE])
    results = []

    async def handler(hint: Hint) -> Outcome:
        assert hint == Hint(JobId("j"), 1)
        return next(outcomes)

    async with asyncio.timeout(60):
        while len(results) < 3:
            if (outcome := await queue.take(handler, wait_seconds=1)) is not None:
                results.append(outcome)
    assert results[0] is Outcome.RETRY_LATER  # the other two in the order of the pause
    assert set(results[1:]) == {Outcome.REJECT, Outcome.DONE}
    assert await queue.take(handler, wait_seconds=0.1) is None


async def test_no_hint_in_time_is_none(event_store: JetStreamEventStore) -> None:
    async def handler(_: Hint) -> Outcome:
        raise AssertionError("there is no hint")

    assert await HintQueue(event_store.js, KEY).take(handler, wait_seconds=0.1) is None


class Candidate:
    """A process that would lead; `leading` tells whether its duty runs."""

    def __init__(self, store: JetStreamEventStore, settings: Settings, owner: str) -> None:
        self.leading = False
        leadership = Leadership(store.js, settings, role="test", owner=owner)
        self.task = asyncio.create_task(leadership.run(self._duty))

    async def _duty(self) -> None:
        self.leading = True
        try:
            await asyncio.Event().wait()
        finally:
            self.leading = False

    async def stop(self) -> None:
        await tasks.end(self.task)


@asynccontextmanager
async def candidates(
    store: JetStreamEventStore, settings: Settings
) -> AsyncIterator[tuple[Candidate, Candidate]]:
    pair = Candidate(store, settings, "a"), Candidate(store, settings, "b")
    try:
        yield pair
    finally:
        await asyncio.gather(*(candidate.stop() for candidate in pair))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"leader_lease_seconds": 1.0})


async def test_one_leads_and_the_other_takes_over_when_it_stops(
    event_store: JetStreamEventStore, settings: Settings
) -> None:
    async with candidates(event_store, settings) as (first, second):
        await until(lambda: first.leading or second.leading)
        leader, standby = (first, second) if first.leading else (second, first)
        assert not standby.leading
        await leader.stop()
        await until(lambda: standby.leading)
        assert not leader.leading


async def test_a_lease_that_lapses_ends_the_duty(
    event_store: JetStreamEventStore, settings: Settings, nats_server: NatsServer
) -> None:
    async with candidates(event_store, settings) as (first, second):
        await until(lambda: first.leading or second.leading)
        nats_server.kill()
        await until(lambda: not first.leading and not second.leading)
        await asyncio.to_thread(nats_server.start)
        await until(lambda: first.leading or second.leading)
        assert not (first.leading and second.leading)


async def test_who_is_told_twice_to_stop_resigns_all_the_same(
    event_store: JetStreamEventStore, settings: Settings
) -> None:
    patient = settings.model_copy(update={"leader_lease_seconds": 60.0})
    began, ending, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def duty() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await ended.wait()

    leadership = Leadership(event_store.js, patient, role="slow", owner="me")
    leading = asyncio.create_task(leadership.run(duty))
    async with asyncio.timeout(60):
        while await leader_of(event_store.js, "slow") != "me":
            await asyncio.sleep(0.005)
        await began.wait()
        leading.cancel()
        await ending.wait()
        leading.cancel()  # as `tasks.end` does after a while
        await asyncio.wait({leading})
    assert await leader_of(event_store.js, "slow") is None
    ended.set()
