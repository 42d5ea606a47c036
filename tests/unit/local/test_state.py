"""The record of what runs."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_batch.local import leftovers, state
from vllm_batch.local.state import ServiceRecord, StackState


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = StackState(
        pid=3, ports={"api": 4080}, services=[ServiceRecord(name="api", state="ready")]
    )
    state.write(tmp_path / "state.json", written)
    assert state.read(tmp_path / "state.json") == written
    assert written.service("api") == ServiceRecord(name="api", state="ready")
    assert written.service("nats") is None
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0


def test_a_missing_or_broken_record_is_an_empty_one(tmp_path: Path) -> None:
    assert state.read(tmp_path / "state.json") == StackState()
    (tmp_path / "state.json").write_text('{"pid": "what')
    assert state.read(tmp_path / "state.json") == StackState()


def test_a_reused_pid_is_not_the_supervisor() -> None:
    started = leftovers.started_at(os.getpid())
    assert started is not None
    assert StackState(pid=os.getpid(), started=started).is_alive
    assert not StackState(pid=os.getpid(), started=started - 5).is_alive
    assert not StackState().is_alive
