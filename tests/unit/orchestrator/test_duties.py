"""A duty that crashes is told by name and starts again; a cancelled one ends."""

from __future__ import annotations

import asyncio
import random

import pytest
from structlog.testing import capture_logs

from batch_gateway.orchestrator import duties


async def test_a_crash_is_logged_and_the_duty_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duties, "_PAUSE_SECONDS", 0.001)
    runs = 0
    enough = asyncio.Event()

    async def duty() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError("out of ideas")
        if runs == 2:
            return
        enough.set()
        await asyncio.Event().wait()

    with capture_logs() as logs:
        task = asyncio.create_task(duties.keep_running("thinking", duty, rng=random.Random(1)))
        async with asyncio.timeout(5):
            await enough.wait()
    assert [(entry["event"], entry["duty"]) for entry in logs] == [
        ("duty crashed", "thinking"),
        ("duty ended", "thinking"),
    ]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runs == 3
