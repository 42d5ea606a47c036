"""Cutting a job's requests into chunks: of one model each, bounded in requests and in bytes. Pure.

The cut depends on nothing but the requests, their order and the limits, so whoever finishes a plan
that another process began cuts the same, as long as it keeps to what chunk 0 has on record.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from batch_gateway.orchestrator.request_index import PREFIX_BYTES, RequestIndex
from vllm_batch.events.chunk import Cut, Prefix


class Piece(NamedTuple):
    """``requests`` requests in bytes [offset, offset + length); the first is on ``first_line`` of
    the input file, and all are for one model, the index's ``model``-th."""

    offset: int
    length: int
    first_line: int
    requests: int
    model: int
    prefix: Prefix | None


class Layout:
    """Requests in the order in which they are worked off: the file's own, or ``order``, for a copy
    of the file that has them one after the other in that order."""

    def __init__(self, index: RequestIndex, order: Sequence[int] | None) -> None:
        self._starts: Sequence[int]
        self._ends: Sequence[int]
        if order is None:
            self._order: Sequence[int] = range(len(index))
            self._starts, self._ends, self._models = index.starts, index.ends, index.models
        else:
            self._order = order
            self._ends = array("Q", accumulate(index.ends[i] - index.starts[i] for i in order))
            self._starts = array("Q", [0, *self._ends[:-1]])
            self._models = array("H", [index.models[i] for i in order])
        self._lines = index.lines
        self._prefixes = [
            sums if order is None else [sums[i] for i in order]
            for sums in map(index.prefixes, range(len(PREFIX_BYTES)))
            if any(sums)
        ]
        self._keeps_groups = order is not None

    def counts(self, cut: Cut) -> list[int]:
        """Return how many requests each chunk has. A request alone may exceed the bytes.

        Where the order was chosen to bring prefixes together, a chunk rather ends between two
        groups of requests than within one, as long as it is at least half full.
        """
        counts, start = [], 0
        for _, run in groupby(self._models):
            run_end = start + sum(1 for _ in run)
            while start < run_end:
                full = min(start + cut.requests_max, run_end)
                byte_limit = self._starts[start] + cut.bytes_max
                stop = max(bisect_right(self._ends, byte_limit, start, full), start + 1)
                if self._keeps_groups and stop < run_end:
                    half_full = start + (stop - start + 1) // 2
                    ends = range(stop, half_full - 1, -1)
                    stop = min(ends, key=self._shared_with_previous)
                counts.append(stop - start)
                start = stop
        return counts

    def pieces(self, counts: Sequence[int]) -> list[Piece]:
        """Return the chunks with ``counts`` requests each."""
        pieces, start = [], 0
        for count in counts:
            end = start + count
            offset = self._starts[start]
            pieces.append(
                Piece(
                    offset,
                    self._ends[end - 1] - offset,
                    self._lines[self._order[start]],
                    count,
                    self._models[start],
                    self._prefix(start, end),
                )
            )
            start = end
        return pieces

    def _shared_with_previous(self, position: int) -> int:
        return sum(sums[position] == sums[position - 1] != 0 for sums in self._prefixes)

    def _prefix(self, start: int, end: int) -> Prefix | None:
        found = None
        for size, sums in zip(PREFIX_BYTES, self._prefixes, strict=False):
            values = set(sums[start:end])
            if len(values) > 1 or 0 in values:
                break
            found = Prefix(size, f"{values.pop():08x}")
        return found
