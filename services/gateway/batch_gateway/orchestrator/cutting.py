"""Cutting a file into chunks: runs of whole lines, bounded in requests and in bytes. Pure.

The cut depends on nothing but the lines and the limits, so whoever finishes a plan that another
process began cuts the same, as long as it keeps to the limits that chunk 0 has on record.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_batch.events.chunk import Cut


class Piece(NamedTuple):
    """``requests`` requests in bytes [offset, offset + length); the first is on ``first_line``."""

    offset: int
    length: int
    first_line: int
    requests: int


class Cutter:
    """Takes the request lines in order; ``pieces`` holds what is cut off."""

    def __init__(self, cut: Cut) -> None:
        self.pieces: list[Piece] = []
        self._cut = cut
        self._start = 0
        self._end = 0
        self._first_line = 0
        self._count = 0

    def add(self, offset: int, end: int, line: int) -> None:
        """Take the request on ``line`` in bytes [offset, end). Alone it may exceed the limit."""
        if self._count and (
            self._count == self._cut.requests_max or end - self._start > self._cut.bytes_max
        ):
            self.finish()
        if not self._count:
            self._start = offset
            self._first_line = line
        self._count += 1
        self._end = end

    def finish(self) -> None:
        """Cut off what is left."""
        if self._count:
            length = self._end - self._start
            self.pieces.append(Piece(self._start, length, self._first_line, self._count))
        self._count = 0
