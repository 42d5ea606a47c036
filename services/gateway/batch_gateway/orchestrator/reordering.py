"""Result lines of chunks that are not in the order of the file, put back into it. Reads and writes
a spool on the local disk, so that memory does not grow with the results."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from batch_gateway.orchestrator.merging import Merged
from batch_gateway.orchestrator.spool import Spool
from vllm_batch.aggregates.chunk import Chunk

LINES_AT_ONCE = 1024


class Lines(NamedTuple):
    """Some lines of the output file, and those of the error file from the same requests."""

    output: bytes
    errors: bytes


class _Places:
    """Where in the spool each request's line is; a request without one has length 0."""

    def __init__(self, count: int) -> None:
        self.starts = array("Q", bytes(8 * count))
        self.lengths = array("Q", bytes(8 * count))
        self.failed = bytearray(count)

    def note(self, request: int, start: int, length: int, *, failed: bool) -> None:
        self.starts[request] = start
        self.lengths[request] = length
        self.failed[request] = failed


async def in_file_order(
    parts: AsyncIterator[Merged], chunks: Sequence[Chunk], order: Sequence[int], spool: Spool
) -> AsyncIterator[Lines]:
    """Yield the lines of ``parts``, one for each chunk, in the file's order. ``order``: which
    request of the file each request is, over all chunks.

    Raises:
        StorageFull: the local disk has no room for all lines.
    """
    places = _Places(len(order))
    first, remaining = 0, iter(chunks)
    async for merged in parts:
        count = next(remaining).planned.count
        mine = order[first : first + count]
        await asyncio.to_thread(_put, spool, places, merged, mine)
        first += count
    for start in range(0, len(order), LINES_AT_ONCE):
        yield await asyncio.to_thread(_get, spool, places, start, start + LINES_AT_ONCE)


def _put(spool: Spool, places: _Places, merged: Merged, requests: Sequence[int]) -> None:
    for lines, failed in ((merged.output, False), (merged.errors, True)):
        start = spool.add(b"".join(lines.values()))
        for index, line in lines.items():
            places.note(requests[index], start, len(line), failed=failed)
            start += len(line)


def _get(spool: Spool, places: _Places, first: int, end: int) -> Lines:
    found: tuple[list[bytes], list[bytes]] = ([], [])
    for request in range(first, min(end, len(places.starts))):
        line = spool.read(places.starts[request], places.lengths[request])
        found[places.failed[request]].append(line)
    return Lines(b"".join(found[0]), b"".join(found[1]))
