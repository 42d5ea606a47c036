"""Blocks hold every line whole, whatever the pieces are; long lines stay bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.orchestrator import line_blocks as module
from batch_gateway.orchestrator.line_blocks import TooLong, line_blocks


async def pieces(*given_pieces: bytes) -> AsyncIterator[bytes]:
    for piece in given_pieces:
        yield piece


async def blocks(*given_pieces: bytes, limit: int = 1 << 20) -> list[bytes | TooLong]:
    return [block async for block in line_blocks(pieces(*given_pieces), line_bytes_max=limit)]


@given(st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=12), st.integers(1, 6))
async def test_nothing_is_lost_and_no_line_is_torn(parts: list[bytes], limit: int) -> None:
    content = b"".join(parts)
    found = await blocks(*parts, limit=limit)
    rebuilt: list[int] = []
    for number, block in enumerate(found):
        if isinstance(block, TooLong):
            rebuilt.append(block.length)
            continue
        assert block
        assert block.endswith(b"\n") or number == len(found) - 1
        rebuilt.extend(map(len, block.splitlines(keepends=True)))
    assert rebuilt == list(map(len, content.splitlines(keepends=True)))


async def test_a_large_piece_is_cut_at_line_ends() -> None:
    line = b"x" * 1000 + b"\n"
    found = await blocks(line * 1000)
    assert all(isinstance(block, bytes) and len(block) <= module.BLOCK_BYTES for block in found)
    assert b"".join(block for block in found if isinstance(block, bytes)) == line * 1000


async def test_a_line_longer_than_a_block_is_a_block() -> None:
    long = b"y" * (3 * module.BLOCK_BYTES) + b"\n"
    assert await blocks(b"a\n" + long + b"b\n") == [b"a\n", long, b"b\n"]


async def test_a_line_over_pieces_is_put_together() -> None:
    assert await blocks(b"a", b"b", b"c\nd", b"e", limit=10) == [b"abc\n", b"de"]


async def test_a_line_over_pieces_beyond_the_limit_is_only_counted() -> None:
    found = await blocks(b"a" * 6, b"b" * 6, b"c\nd\n", limit=10)
    assert found == [TooLong(14), b"d\n"]


async def test_a_long_line_within_one_piece_is_left_to_who_reads_the_block() -> None:
    """It is in memory anyway."""
    assert await blocks(b"a" * 20 + b"\n", limit=10) == [b"a" * 20 + b"\n"]
