"""A process's log lines as telemetry on ``worker.log.<worker>``, and in files where asked for.

Sits in structlog's chain before the renderer: takes terminal colours and secrets out of every line,
whoever prints it, and keeps the line for the publisher. Logging never waits and never fails because
of it: what cannot be sent waits in a bounded queue whose oldest lines are dropped, and counted.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import MutableMapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

import msgspec
import nats.errors
from nats.aio.client import Client

from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.redaction import Redactor
from vllm_batch.settings import Settings

FILE_BYTES_MAX = 10_000_000
FILES_KEPT = 7
SEND_SECONDS = 0.2
MESSAGE_CHARACTERS_MAX = 8000
ENGINE_EVENT = "engine"
"""The structlog event under which an engine's output is logged; its text is in ``line``."""

Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error", "critical")

_OWN_FIELDS = frozenset({"event", "level", "timestamp", "service", "worker"})
_ENGINE_LEVEL = re.compile(
    r"^(?:\([^)]*\)\s*)*\[?(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b"
    r"|^(?:\([^)]*\)\s*)*(Traceback \(most recent call last\)|[\w.]*(?:Error|Exception): )"
    r"|^(?:\([^)]*\)\s*)*[^\s:]*:\d+: [\w.]*(Warning): "
)
_ENGINE_LEVELS: dict[str, Level] = {
    "DEBUG": "debug", "INFO": "info", "WARN": "warning", "WARNING": "warning", "ERROR": "error",
    "CRITICAL": "critical", "FATAL": "critical",
}  # fmt: skip


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. ``fields`` are those of the structured log, secrets taken out."""

    time: datetime
    level: Level
    source: Literal["agent", "engine"]
    message: str
    fields: dict[str, Any] = {}


def engine_level(line: str) -> Level:
    """Return how serious a line of an engine's output is, as far as it says."""
    found = _ENGINE_LEVEL.match(line)
    if found is None:
        return "info"
    if word := found[1]:
        return _ENGINE_LEVELS[word]
    return "warning" if found[3] else "error"


class LogStream:
    """Use it as a structlog processor; ``run`` sends what it keeps. Counts what it saw."""

    def __init__(self, settings: Settings) -> None:
        self.errors = 0
        self.warnings = 0
        self.dropped = 0
        self._dropped_unsaid = 0
        self._redactor = Redactor(settings)
        self._waiting: deque[LogLine] = deque()
        self._waiting_max = settings.log_lines_waiting_max
        self._file: RotatingFileHandler | None = None
        if settings.log_dir is not None:
            self._file = _log_file(settings.log_dir, f"worker-{settings.worker_name}.log")

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Keep the line; return the event with secrets and colours taken out."""
        cleaned = {name: self._redactor.clean_value(value) for name, value in event.items()}
        line = _line_of(cleaned)
        if line.level in {"error", "critical"}:
            self.errors += 1
        elif line.level == "warning":
            self.warnings += 1
        if len(self._waiting) >= self._waiting_max:
            self._waiting.popleft()
            self.dropped += 1
            self._dropped_unsaid += 1
        self._waiting.append(line)
        if self._file is not None:
            self._file.emit(logging.makeLogRecord({"msg": msgspec.json.encode(line).decode()}))
        return cleaned

    async def run(self, client: Client, worker_id: WorkerId) -> None:
        """Send for ever."""
        while True:
            await self.flush(client, worker_id)
            await asyncio.sleep(SEND_SECONDS)

    async def flush(self, client: Client, worker_id: WorkerId) -> None:
        """Send what waits, while there is a connection."""
        subject = subjects.log(worker_id)
        while self._waiting and client.is_connected:
            if missing := self._dropped_unsaid:
                self._dropped_unsaid = 0
                self._waiting.appendleft(_dropped_line(missing))
            line = self._waiting.popleft()
            try:
                await client.publish(subject, msgspec.json.encode(line))
            except (nats.errors.Error, ConnectionError):
                self._waiting.appendleft(line)
                return

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _line_of(event: MutableMapping[str, Any]) -> LogLine:
    level = str(event.get("level", "info"))
    is_engine = event.get("event") == ENGINE_EVENT and "line" in event
    message = str(event["line"] if is_engine else event.get("event", ""))
    hidden = _OWN_FIELDS | {"line"} if is_engine else _OWN_FIELDS
    fields = {name: _cut(value) for name, value in event.items() if name not in hidden}
    return LogLine(
        time=datetime.now(UTC),
        level=level if level in LEVELS else "info",
        source="engine" if is_engine else "agent",
        message=message[:MESSAGE_CHARACTERS_MAX],
        fields=fields,
    )


def _cut(value: Any) -> Any:
    """Return a value that keeps a line small; a traceback's end says the most."""
    return value[-MESSAGE_CHARACTERS_MAX:] if isinstance(value, str) else value


def _dropped_line(count: int) -> LogLine:
    return LogLine(
        time=datetime.now(UTC), level="warning", source="agent", message="log lines were dropped",
        fields={"count": count},
    )  # fmt: skip


class _QuietFile(RotatingFileHandler):
    """A full disk costs log lines, nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base's name
        """Drop the line."""


def _log_file(directory: Path, name: str) -> RotatingFileHandler:
    directory.mkdir(parents=True, exist_ok=True)
    return _QuietFile(
        directory / name, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT - 1, encoding="utf-8",
        delay=True,
    )  # fmt: skip
