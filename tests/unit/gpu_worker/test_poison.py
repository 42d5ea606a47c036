"""Whoever kills the engine is found by halving, at a price that is known, and nobody else is."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gpu_worker.poison import Quarantine, RequestKey
from vllm_batch.ids import JobId


def key(number: int) -> RequestKey:
    return JobId("batch_j"), number // 64, number % 64


class Shop:
    """An engine that holds ``width`` requests and crashes as soon as it holds a poisoned one, or
    when luck has it. Requests finish in any order."""

    def __init__(self, count: int, poisoned: set[int], width: int, rng: random.Random) -> None:
        self.quarantine = Quarantine()
        self.crashes = 0
        self.answered: set[RequestKey] = set()
        self.convicted: set[RequestKey] = set()
        self._poisoned = {key(number) for number in poisoned}
        self._waiting = deque(key(number) for number in range(count))
        self._begun: list[RequestKey] = []
        self._width = width
        self._rng = rng

    def run(self, *, accidents: float = 0.0, steps_max: int = 200_000) -> None:
        """Work until everything has ended."""
        for _ in range(steps_max):
            while self._waiting and len(self._begun) < self._width:
                self._begun.append(self._waiting.popleft())
            if not self._begun:
                return
            held = [one for one in self._begun if self.quarantine.may_run(one)]
            assert held, "nobody may run: a deadlock"
            if self._poisoned.intersection(held) or self._rng.random() < accidents:
                self._crash(held)
            else:
                self._finish(self._rng.choice(held))
        raise AssertionError("it never ends")

    def _crash(self, held: list[RequestKey]) -> None:
        self.crashes += 1
        guilty = self.quarantine.crashed(set(held))
        if guilty is not None:
            assert held == [guilty], "convicted without having been alone"
            self.convicted.add(guilty)
            self._finish(guilty, answered=False)

    def _finish(self, one: RequestKey, *, answered: bool = True) -> None:
        self._begun.remove(one)
        self.quarantine.left(one)
        if answered:
            self.answered.add(one)


@pytest.mark.parametrize("position", [0, 1, 100, 255, 256, 700, 998, 999])
def test_one_poison_in_a_thousand_costs_at_most_twelve_crashes(position: int) -> None:
    shop = Shop(1000, {position}, width=256, rng=random.Random(position))
    shop.run()
    assert shop.convicted == {key(position)}
    assert len(shop.answered) == 999
    assert 3 <= shop.crashes <= 12
    assert not shop.quarantine.watching


@given(
    count=st.integers(1, 300),
    poisoned=st.sets(st.integers(0, 299), max_size=3),
    width=st.integers(1, 128),
    seed=st.integers(0, 1000),
)
def test_only_the_poisoned_are_convicted(
    count: int, poisoned: set[int], width: int, seed: int
) -> None:
    poisoned = {number for number in poisoned if number < count}
    shop = Shop(count, poisoned, width, random.Random(seed))
    shop.run()
    assert shop.convicted == {key(number) for number in poisoned}
    assert len(shop.answered) == count - len(poisoned)
    assert shop.crashes <= len(poisoned) * (3 + math.ceil(math.log2(width + 1)))


@given(seed=st.integers(0, 1000))
def test_accidents_never_keep_a_batch_from_its_end(seed: int) -> None:
    shop = Shop(200, {7}, 64, random.Random(seed))
    shop.run(accidents=0.05)
    assert key(7) in shop.convicted
    assert len(shop.answered) + len(shop.convicted) == 200


def test_one_crash_is_an_accident() -> None:
    quarantine = Quarantine()
    assert quarantine.crashed({key(1), key(2)}) is None
    assert not quarantine.active
    assert quarantine.crashed({key(3)}) is None  # none of them was there before
    assert not quarantine.active


def test_an_idle_crash_blames_nobody() -> None:
    quarantine = Quarantine()
    for _ in range(5):
        assert quarantine.crashed(set()) is None
    assert not quarantine.watching


def test_who_was_answered_is_no_suspect() -> None:
    quarantine = Quarantine()
    quarantine.crashed({key(1), key(2)})
    quarantine.left(key(1))
    quarantine.crashed({key(1), key(2)})
    assert quarantine.suspects == 1
    assert quarantine.may_run(key(2))
    assert not quarantine.may_run(key(1))
    quarantine.left(key(2))  # its job was cancelled
    assert not quarantine.active
    assert quarantine.may_run(key(1))
