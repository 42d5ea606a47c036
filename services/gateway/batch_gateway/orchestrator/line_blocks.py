"""From the pieces a blob store yields to blocks of whole lines, in bounded memory. Pure.

A block holds about BLOCK_BYTES, so that working it off does not hold up the event loop; a longer
line is a block of its own, and a line beyond the limit is only counted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

BLOCK_BYTES = 128 * 1024


class TooLong(NamedTuple):
    """Stands for a line of ``length`` bytes, its newline included."""

    length: int


async def line_blocks(
    pieces: AsyncIterator[bytes], *, line_bytes_max: int
) -> AsyncGenerator[bytes | TooLong]:
    """Yield ``pieces`` as blocks of whole lines; the last line may lack its newline."""
    begun: list[bytes] = []  # of a line whose end has not come yet
    size = 0
    async for piece in pieces:
        position = 0
        if begun:
            end = piece.find(b"\n") + 1
            head = piece[:end] if end else piece
            size += len(head)
            if size <= line_bytes_max + 1:
                begun.append(head)
            else:
                begun = [b""]
            if not end:
                continue
            yield _whole(begun, size, line_bytes_max)
            begun, size, position = [], 0, end
        last = piece.rfind(b"\n") + 1
        while position < last:
            end = _block_end(piece, position, last)
            yield piece[position:end]
            position = end
        if position < len(piece):
            begun, size = [piece[position:]], len(piece) - position
    if begun:
        yield _whole(begun, size, line_bytes_max)


def _whole(begun: list[bytes], size: int, line_bytes_max: int) -> bytes | TooLong:
    if size > line_bytes_max + 1:
        return TooLong(size)
    line = b"".join(begun)
    begun.clear()  # the pieces of a long line are not needed beside the whole
    return line


def _block_end(piece: bytes, position: int, last: int) -> int:
    end = position + BLOCK_BYTES
    if end >= last:
        return last
    newline = piece.rfind(b"\n", position, end)
    return newline + 1 if newline >= 0 else piece.find(b"\n", end) + 1
