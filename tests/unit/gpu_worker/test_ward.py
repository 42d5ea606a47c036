"""The door before the engine: nobody waits for ever, and nobody is forgotten in it."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.gpu_worker.bench import ScriptedEngine

from batch_gpu_worker.engines.base import EngineResponse
from batch_gpu_worker.poison import RequestKey
from batch_gpu_worker.ward import Ward
from vllm_batch.errors import EngineCrashed
from vllm_batch.ids import JobId


def key(number: int) -> RequestKey:
    return JobId("batch_j"), 0, number


class Engine:
    """Holds requests for a turn of the loop or a few; poison takes all of them along. Some callers
    hear of a crash late: a connection that breaks slowly."""

    def __init__(self, poisoned: set[int], rng: random.Random) -> None:
        self.scripted = ScriptedEngine(EngineResponse(200, b"{}"))
        self.ward = Ward(self.scripted)
        self.crashes = 0
        self._poisoned = poisoned
        self._rng = rng
        self._generation = 0

    async def call(self, number: int) -> None:
        generation = self._generation
        for _ in range(self._rng.randrange(1, 6)):
            await asyncio.sleep(0)
            if number in self._poisoned and self._generation == generation:
                self._crash()
            if self._generation != generation:
                for _ in range(self._rng.choice((0, 0, 0, 0, 0, 12))):
                    await asyncio.sleep(0)
                raise EngineCrashed

    def _crash(self) -> None:
        self.crashes += 1
        self._generation += 1
        self.scripted.ready.clear()
        self.ward.engine_died(blame=True)
        asyncio.get_running_loop().call_later(0.0002, self.scripted.ready.set)

    async def request(self, number: int, slots: asyncio.Semaphore) -> bool:
        """Return whether it was answered; as `RequestRunner` goes about it."""
        async with slots:
            try:
                while True:
                    if self.ward.closed or not self.scripted.ready.is_set():
                        await self.ward.admit(key(number))
                    try:
                        await self.call(number)
                        return True
                    except EngineCrashed:
                        self.ward.fell(key(number))
            except EngineCrashed:
                return False
            finally:
                self.ward.left(key(number))


@given(
    poisoned=st.sets(st.integers(0, 99), max_size=3),
    width=st.integers(1, 64),
    cancelled=st.sets(st.integers(0, 99), max_size=5),
    seed=st.integers(0, 10_000),
)
def test_everyone_gets_through_but_poison(
    poisoned: set[int], width: int, cancelled: set[int], seed: int
) -> None:
    async def run() -> None:
        engine = Engine(poisoned, random.Random(seed))
        slots = asyncio.Semaphore(width)
        tasks = [asyncio.create_task(engine.request(n, slots)) for n in range(100)]
        await asyncio.sleep(0.0005)
        for number in cancelled:
            tasks[number].cancel()
        async with asyncio.timeout(20):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if number in cancelled and isinstance(result, asyncio.CancelledError):
                continue
            assert result is (number not in poisoned), number
        assert not engine.ward.quarantine.active
        if not engine.crashes:
            assert not engine.ward.closed

    asyncio.run(run())


async def test_a_death_that_is_nobodys_fault_blames_nobody() -> None:
    engine = ScriptedEngine(EngineResponse(200, b"{}"))
    ward = Ward(engine)
    for _ in range(5):
        engine.ready.clear()
        ward.engine_died(blame=False)
        ward.fell(key(1))
        assert ward.closed
        engine.ready.set()
        await ward.admit(key(1))
        assert not ward.closed
    assert not ward.quarantine.watching


async def test_who_did_it_alone_is_told() -> None:
    engine = ScriptedEngine(EngineResponse(200, b"{}"))
    ward = Ward(engine)
    for _ in range(2):
        ward.engine_died(blame=True)
        ward.fell(key(1))
        await ward.admit(key(1))
    ward.engine_died(blame=True)
    ward.fell(key(1))
    with pytest.raises(EngineCrashed):
        await ward.admit(key(1))
    ward.left(key(1))
    assert not ward.closed
    await ward.admit(key(2))
