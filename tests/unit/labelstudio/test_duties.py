"""A duty of the bridge that fails is begun again: nothing stops for good because NATS went."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from batch_labelstudio import main
from batch_labelstudio.bridge import Bridge
from vllm_batch import tasks
from vllm_batch.errors import EventStoreUnavailable


@pytest.mark.parametrize("failure", [EventStoreUnavailable("away"), RuntimeError("a bug")])
async def test_a_duty_that_fails_is_begun_again(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(main, "RETRY_SECONDS", 0.0)
    begun, again = 0, asyncio.Event()

    async def duty(_: Bridge) -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise failure
        again.set()
        await asyncio.get_running_loop().create_future()

    running = asyncio.ensure_future(main.kept(duty, cast("Bridge", None)))
    async with asyncio.timeout(10):
        await again.wait()
    await tasks.end(running)
    assert begun == 3
