"""Chunks cover every request once, in order, within the limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.orchestrator.cutting import Cutter, Piece
from vllm_batch.events.chunk import Cut


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(1, 100),
)
def test_every_request_is_in_exactly_one_chunk(
    lines: list[tuple[int, int]], requests_max: int, bytes_max: int
) -> None:
    """``lines``: blank lines before a request, and its length."""
    cutter = Cutter(Cut(requests_max, bytes_max))
    offset, number, requests = 0, 0, []
    for blanks, length in lines:
        offset += blanks
        number += blanks + 1
        cutter.add(offset, offset + length, number)
        requests.append((offset, offset + length, number))
        offset += length
    cutter.finish()
    left = list(requests)
    for piece in cutter.pieces:
        mine, left = left[: piece.requests], left[piece.requests :]
        assert len(mine) == piece.requests <= requests_max
        assert (mine[0][0], mine[0][2]) == (piece.offset, piece.first_line)
        assert mine[-1][1] == piece.offset + piece.length
        assert piece.length <= bytes_max or piece.requests == 1
    assert left == []


def test_a_line_larger_than_a_chunk_is_a_chunk() -> None:
    cutter = Cutter(Cut(10, 100))
    for offset, end, line in [(0, 10, 1), (10, 310, 2), (310, 320, 3), (320, 330, 5)]:
        cutter.add(offset, end, line)
    cutter.finish()
    assert cutter.pieces == [Piece(0, 10, 1, 1), Piece(10, 300, 2, 1), Piece(310, 20, 3, 2)]


def test_without_requests_there_are_no_chunks() -> None:
    cutter = Cutter(Cut(10, 100))
    cutter.finish()
    assert cutter.pieces == []
