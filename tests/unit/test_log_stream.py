"""Log lines on their way out: cleaned, counted, bounded, and never in the way of the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batch import log_stream
from vllm_batch.ids import WorkerId
from vllm_batch.log_stream import LogLine, LogStream, engine_level
from vllm_batch.redaction import Redactor, without_ansi
from vllm_batch.settings import Settings

ME = WorkerId("worker_0123456789abcdef01234567")


class Wire:
    """Stands for a NATS connection: takes what is sent, or fails as one does."""

    def __init__(self, *, connected: bool = True, fails_after: int | None = None) -> None:
        self.is_connected = connected
        self.sent: list[LogLine] = []
        self._fails_after = fails_after

    async def publish(self, subject: str, payload: bytes) -> None:
        assert subject == f"worker.log.{ME}"
        if self._fails_after is not None and len(self.sent) >= self._fails_after:
            raise nats.errors.OutboundBufferLimitError
        self.sent.append(msgspec.json.decode(payload, type=LogLine))


def stream(tmp_path: Path, **settings: Any) -> LogStream:
    return LogStream(Settings(home=tmp_path, **settings))


def say(logs: LogStream, event: str, level: str = "info", **fields: Any) -> Any:
    return logs(None, level, {"event": event, "level": level, "timestamp": "x", **fields})


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("INFO 11-23 20:01:02 [core.py:58] fine", "info"),
        ("(EngineCore pid=71) WARNING 11-23 20:01:02 [utils.py:1] hm", "warning"),
        ("(APIServer pid=7) (Worker pid=8) ERROR 11-23 [x.py:1] oh", "error"),
        ("[ERROR] launcher", "error"),
        ("CRITICAL 11-23 x", "critical"),
        ("DEBUG 11-23 x", "debug"),
        ("Traceback (most recent call last):", "error"),
        ("(EngineCore pid=71) torch.OutOfMemoryError: CUDA out of memory.", "error"),
        ("ValueError: no", "error"),
        ("model.py:12: FutureWarning: old", "warning"),
        ("Loading safetensors: 100%", "info"),
        ("an ERROR in the middle", "info"),
        ("", "info"),
    ],
)
def test_an_engines_lines_are_as_serious_as_they_say(line: str, level: str) -> None:
    assert engine_level(line) == level


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key sk-abcdefgh12345 given", "key [redacted] given"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [redacted]"),
        ("dsn password=hunter2 host=x", "dsn password=[redacted] host=x"),
        ("nats://ada:geheim@host:4222", "nats://[redacted]@host:4222"),
        ("?api_key=123456&x=1", "?api_key=[redacted]&x=1"),
        ("the key is s3cr3t!", "the key is [redacted]!"),
        ("the database's is pa55word", "the database's is [redacted]"),
        ("risky business, a sk-eleton", "risky business, a sk-eleton"),
    ],
)
def test_secrets_are_taken_out(tmp_path: Path, text: str, clean: str) -> None:
    settings = Settings(
        home=tmp_path, engine_api_key="s3cr3t", postgres_dsn="postgresql://u:pa55word@h/db"
    )
    redactor = Redactor(settings)
    assert redactor.clean(text) == clean
    assert redactor.clean_value({"a": [text, 1, None]}) == {"a": [clean, 1, None]}


def test_settings_without_secrets_have_none_to_take_out(tmp_path: Path) -> None:
    assert Redactor(Settings(home=tmp_path)).clean("postgres") == "postgres"


@given(st.text())
def test_cleaning_never_fails(text: str) -> None:
    cleaned = without_ansi(f"{text}\x1b[0m")
    assert not cleaned.endswith("\x1b[0m")
    assert len(cleaned) <= len(text)


@pytest.mark.parametrize(
    "coloured", ["\x1b[31mred\x1b[0m", "\x1b[1;38;5;12mred", "\x1b]0;title\x07red", "r\x1b[Ked"]
)
def test_colours_are_taken_out(coloured: str) -> None:
    assert without_ansi(coloured) == "red"


async def test_what_is_said_is_sent_in_order_and_counted(tmp_path: Path) -> None:
    logs, wire = stream(tmp_path), Wire()
    say(logs, "one", job="batch_1", worker="w", service="gpu-worker")
    say(logs, "two", "warning", error=ValueError("Bearer abc"))
    say(logs, "engine", "error", line="\x1b[31mboom\x1b[0m")
    assert (logs.errors, logs.warnings) == (1, 1)
    await logs.flush(wire, ME)  # type: ignore[arg-type]
    assert [(line.message, line.level, line.source) for line in wire.sent] == [
        ("one", "info", "agent"), ("two", "warning", "agent"), ("boom", "error", "engine"),
    ]  # fmt: skip
    assert wire.sent[0].fields == {"job": "batch_1"}
    assert wire.sent[1].fields == {"error": "Bearer [redacted]"}
    assert wire.sent[2].fields == {}


async def test_the_oldest_are_dropped_and_that_is_said(tmp_path: Path) -> None:
    logs, wire = stream(tmp_path, log_lines_waiting_max=3), Wire()
    for number in range(10):
        say(logs, f"line {number}")
    await logs.flush(wire, ME)  # type: ignore[arg-type]
    assert logs.dropped == 7
    assert wire.sent[0].message == "log lines were dropped"
    assert wire.sent[0].fields == {"count": 7}
    assert [line.message for line in wire.sent[1:]] == ["line 7", "line 8", "line 9"]


async def test_without_a_connection_lines_wait(tmp_path: Path) -> None:
    logs = stream(tmp_path)
    for number in range(4):
        say(logs, str(number))
    await logs.flush(Wire(connected=False), ME)  # type: ignore[arg-type]
    failing = Wire(fails_after=2)
    await logs.flush(failing, ME)  # type: ignore[arg-type]
    wire = Wire()
    await logs.flush(wire, ME)  # type: ignore[arg-type]
    assert [line.message for line in failing.sent + wire.sent] == ["0", "1", "2", "3"]


async def test_a_line_is_never_too_long(tmp_path: Path) -> None:
    logs, wire = stream(tmp_path), Wire()
    say(logs, "x" * 1_000_000, exception="y" * 1_000_000 + "the end")
    await logs.flush(wire, ME)  # type: ignore[arg-type]
    assert len(msgspec.json.encode(wire.sent[0])) < 20_000
    assert wire.sent[0].fields["exception"].endswith("the end")


def test_the_renderer_gets_the_cleaned_event(tmp_path: Path) -> None:
    event = say(stream(tmp_path), "hello", token="sk-0123456789")
    assert event == {"event": "hello", "level": "info", "timestamp": "x", "token": "[redacted]"}


def test_files_rotate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "FILE_BYTES_MAX", 2000)
    logs = stream(tmp_path, log_dir=tmp_path / "logs", worker_name="w")
    for number in range(500):
        say(logs, f"line {number}")
    logs.close()
    files = sorted((tmp_path / "logs").iterdir())
    assert len(files) == 7
    assert all(path.stat().st_size <= 2000 for path in files)
    last = (tmp_path / "logs" / "worker-w.log").read_text().splitlines()[-1]
    assert msgspec.json.decode(last, type=LogLine).message == "line 499"


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path, small_disk: Path) -> None:
    logs = stream(tmp_path, log_dir=small_disk, worker_name="w")
    for _ in range(1000):
        say(logs, "z" * 7000)
    logs.close()
    assert sum(path.stat().st_size for path in small_disk.iterdir()) <= 4 * 1024 * 1024
