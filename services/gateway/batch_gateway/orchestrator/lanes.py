"""Room for work on files: a few large ones at a time, and small ones beside them."""

from __future__ import annotations

import asyncio

LARGE_AT_ONCE = 4
SMALL_AT_ONCE = 32
SMALL_BYTES_MAX = 1024 * 1024


class Lanes:
    """Two limits, so that a ten-line batch never queues behind four huge ones."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._small = asyncio.Semaphore(SMALL_AT_ONCE)

    def of(self, size_bytes: int) -> asyncio.Semaphore:
        """Return the limit for work on ``size_bytes``; hold it while working."""
        return self._small if size_bytes <= SMALL_BYTES_MAX else self._large
