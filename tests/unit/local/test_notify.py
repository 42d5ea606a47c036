"""The sending side of sd_notify."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from vllm_batch.notify import alive, notify


def test_without_a_supervisor_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify(READY=1) is False


def test_fields_arrive_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0vllm-batch-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@vllm-batch-test-notify")
        assert notify(READY=1, STATUS="two\nlines") is True
        assert receiver.recv(1000) == b"READY=1\nSTATUS=two lines"


def test_a_supervisor_that_is_gone_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify(READY=1) is False


async def test_a_container_sees_that_the_event_loop_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "alive"
    monkeypatch.setenv("VLLM_BATCH_ALIVE_FILE", str(file))

    async def service() -> str:
        async with asyncio.timeout(5):
            while not file.exists():
                await asyncio.sleep(0)
        return "done"

    assert await alive(service()) == "done"
