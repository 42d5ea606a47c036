"""A service serves until it is told to stop, and what goes wrong in it is not hidden."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from vllm_batch import process
from vllm_batch.errors import StackError
from vllm_batch.settings import Settings


@pytest.mark.parametrize("number", process.STOPPING)
async def test_a_signal_ends_it_after_it_has_tidied_up(number: signal.Signals) -> None:
    done: list[str] = []

    async def serve() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            done.append("tidied up")

    await process.until_told(serve())
    assert done == ["tidied up"]


async def test_what_goes_wrong_is_raised() -> None:
    async def serve() -> None:
        await asyncio.sleep(0)
        raise StackError("no port")

    with pytest.raises(StackError, match="no port"):
        await process.until_told(serve())


def test_one_that_cannot_run_says_why_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve(settings: Settings) -> None:
        raise StackError("no port")

    monkeypatch.setattr(process, "configure_logs", lambda *_, **__: None)
    assert process.run("test", serve) == 1
    assert "no port" in capsys.readouterr().out
