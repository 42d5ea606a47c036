"""What a child process prints, in a file of bounded size (10 MB, 7 kept).

The supervisor reads the child's pipe and writes the file, so that rotation never loses a line and
no child has to know about it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE_BYTES_MAX = 10_000_000
FILES_KEPT = 7
_READ_BYTES = 65_536
_LINE_BYTES_MAX = 1_000_000
_TAIL_LINES = 30


class LogFile:
    """Rotating file of one service, fed from a pipe on the running event loop."""

    def __init__(
        self, path: Path, *, bytes_max: int = FILE_BYTES_MAX, kept: int = FILES_KEPT
    ) -> None:
        self._handler = RotatingFileHandler(
            path, maxBytes=bytes_max, backupCount=kept - 1, encoding="utf-8", delay=True
        )
        self._partial = b""
        self._descriptor: int | None = None
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def follow(self, descriptor: int) -> None:
        """Copy what arrives on ``descriptor`` until its last writer closes it, then close it."""
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._readable, descriptor)

    def unfollow(self) -> None:
        """Take what is left of what was followed and close it, unless that was done."""
        # The number of a descriptor that was closed may be somebody else's by now.
        if self._descriptor is not None:
            while self._read(self._descriptor):
                pass
            self._close(self._descriptor)

    def note(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        self._write_line(f"[supervisor] {text}")

    def close(self) -> None:
        """Close the file."""
        self._flush()
        self._handler.close()

    def _readable(self, descriptor: int) -> None:
        if not self._read(descriptor, once=True):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._descriptor = None
        self._flush()

    def _read(self, descriptor: int, *, once: bool = False) -> bool:
        try:
            chunk = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return once  # nothing now; with `once` the pipe stays open
        if not chunk:
            return False
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._write_line(line.decode(errors="replace"))
        if len(self._partial) > _LINE_BYTES_MAX:
            self._flush()
        return True

    def _flush(self) -> None:
        if self._partial:
            self._write_line(self._partial.decode(errors="replace"))
            self._partial = b""

    def _write_line(self, line: str) -> None:
        self.tail.append(line)
        self._handler.emit(logging.makeLogRecord({"msg": line}))
