"""Slots, priorities and windows: what keeps online requests ahead and bounded."""

from __future__ import annotations

import asyncio

import pytest

from batch_gpu_worker.answers import fit_for_batch
from batch_gpu_worker.engines.priority import ONLINE_PRIORITY, with_priority
from batch_gpu_worker.engines.slots import Slots
from batch_gpu_worker.online_answer import Window


async def test_the_lowest_priority_goes_first_then_the_oldest() -> None:
    slots, order = Slots(lambda: 1), []

    async def run(name: str, priority: int) -> None:
        async with slots.taken(priority):
            order.append(name)

    async with slots.taken(0):
        waiting = [
            asyncio.create_task(run(*each))
            for each in (("batch 1", 0), ("batch 2", 0), ("online", -1), ("left", -2))
        ]
        await asyncio.sleep(0)
        waiting[-1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert order == ["online", "batch 1", "batch 2"]


async def test_a_turn_that_comes_with_a_cancel_goes_to_the_next() -> None:
    slots = Slots(lambda: 1)

    async def run() -> str:
        async with slots.taken(0):
            return "ran"

    async with slots.taken(0):
        first, second = asyncio.create_task(run()), asyncio.create_task(run())
        await asyncio.sleep(0)
    first.cancel()  # its turn has come, and it does not know yet
    assert await second == "ran"


async def test_those_who_wait_are_sent_away_by_a_crash() -> None:
    slots = Slots(lambda: 1)

    async def run() -> None:
        async with slots.taken(0):
            pass

    async with slots.taken(0):
        waiting = asyncio.create_task(run())
        await asyncio.sleep(0)
        slots.lose(lambda: RuntimeError("crashed"))
        with pytest.raises(RuntimeError, match="crashed"):
            await waiting
    await run()


async def test_a_window_holds_back_until_the_client_has_read_on() -> None:
    window = Window(100)
    await window.take(100)
    waiting = asyncio.create_task(window.take(50))
    await asyncio.sleep(0)
    assert not waiting.done()
    window.grow(10)
    await waiting


@pytest.mark.parametrize(
    "body",
    [b'{"model":"m","priority":-9}', b'{"\\u0070riority":-9,"model":"m"}'],
    ids=["plain", "escaped"],
)
def test_no_batch_request_jumps_the_queue(body: bytes) -> None:
    assert fit_for_batch(body) == b'{"model":"m"}'


def test_an_online_request_has_the_priority_that_we_give_it() -> None:
    body = with_priority(b'{"\\u0070riority": 5, "x": 1.10}', ONLINE_PRIORITY)
    assert body == b'{"priority":-1,"x":1.10}'
    assert with_priority(b"no JSON", ONLINE_PRIORITY) == b"no JSON"
