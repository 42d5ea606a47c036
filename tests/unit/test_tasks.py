"""Tasks end when they are told to, also those that miss it the first time."""

from __future__ import annotations

import asyncio

import pytest

from vllm_batch import tasks


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)


async def stubborn(misses: int, ended: list[str]) -> None:
    """Miss ``misses`` cancellations, as a wait that was answered at the same moment does."""
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            misses -= 1
            if misses < 0:
                ended.append("stubborn")
                raise


async def test_a_task_that_misses_its_cancellation_is_cancelled_again() -> None:
    ended: list[str] = []
    task = asyncio.create_task(stubborn(2, ended))
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.end(task), 5)
    assert task.cancelled()
    assert ended == ["stubborn"]


async def test_the_first_to_fail_ends_the_others_and_is_heard() -> None:
    ended: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await asyncio.wait_for(tasks.first_to_end(stubborn(1, ended), fail()), 5)
    assert ended == ["stubborn"]


async def test_cancelling_the_whole_ends_every_part() -> None:
    ended: list[str] = []
    whole = asyncio.create_task(tasks.first_to_end(stubborn(1, ended), stubborn(0, ended)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    whole.cancel()
    with pytest.raises(asyncio.CancelledError):
        await whole
    assert ended == ["stubborn", "stubborn"]


async def test_whoever_is_cancelled_while_it_ends_others_ends_them_all_the_same() -> None:
    ended: list[str] = []
    inner = asyncio.create_task(stubborn(3, ended))
    await asyncio.sleep(0)
    ending = asyncio.create_task(tasks.end(inner))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert ended == ["stubborn"]
