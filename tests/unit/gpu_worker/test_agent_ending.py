"""Ending tasks, whatever they do with a cancel."""

from __future__ import annotations

import asyncio

import pytest

from batch_gpu_worker import agent
from vllm_batch import tasks


async def test_a_swallowed_cancel_keeps_no_worker_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)
    began = asyncio.Event()

    async def swallows_the_first() -> None:
        try:
            began.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.get_running_loop().create_future()

    async def fails() -> None:
        raise ValueError

    stubborn, failing = asyncio.create_task(swallows_the_first()), asyncio.create_task(fails())
    await began.wait()
    async with asyncio.timeout(5):
        await agent._end_tasks(stubborn, failing)
    assert stubborn.cancelled()
    assert isinstance(failing.exception(), ValueError)
    await agent._end_tasks()
