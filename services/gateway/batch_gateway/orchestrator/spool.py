"""Bytes that are written in one order and read in another, kept on the local disk meanwhile.

The file has no name, so nothing is left of it, however the process ends. Calls block: use threads.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from vllm_batch.errors import StorageFull
from vllm_batch.settings import Settings


def directory_of(settings: Settings) -> Path:
    """Return where temporary files go."""
    return settings.spool_dir or settings.home / "spool"


class Spool:
    """A temporary file in ``directory``, which is made if need be."""

    def __init__(self, directory: Path) -> None:
        self.size = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise StorageFull(f"no room for a temporary file: {error}") from error

    def add(self, data: bytes) -> int:
        """Append ``data``; return where it begins.

        Raises:
            StorageFull: the local disk has no room for it.
        """
        start, view = self.size, memoryview(data)
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError as error:
            raise StorageFull(f"no room for a temporary file: {error}") from error
        self.size += len(data)
        return start

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start``."""
        return os.pread(self._file.fileno(), length, start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
