"""Chunks cover every request once, of one model each, within the limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.orchestrator.arranging import arrange
from batch_gateway.orchestrator.cutting import Layout, Piece
from batch_gateway.orchestrator.request_index import RequestIndex
from vllm_batch.events.chunk import Cut, Prefix


def index_of(lines: list[tuple[int, int]], models: list[int] | None = None) -> RequestIndex:
    """``lines``: blank lines before a request, and its length."""
    index = RequestIndex()
    offset = number = 0
    for at, (blanks, length) in enumerate(lines):
        offset += blanks
        number += blanks + 1
        model = models[at] if models else 0
        index.add(offset, offset + length, number, model, memoryview(b""))
        offset += length
    return index


def cut(index: RequestIndex, limits: Cut, order: list[int] | None = None) -> list[Piece]:
    layout = Layout(index, order)
    return layout.pieces(layout.counts(limits))


LINES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=60)


@given(LINES, st.integers(1, 7), st.integers(1, 100))
def test_every_request_is_in_exactly_one_chunk(
    lines: list[tuple[int, int]], requests_max: int, bytes_max: int
) -> None:
    index = index_of(lines)
    left = list(zip(index.starts, index.ends, index.lines, strict=True))
    for piece in cut(index, Cut(requests_max, bytes_max)):
        mine, left = left[: piece.requests], left[piece.requests :]
        assert len(mine) == piece.requests <= requests_max
        assert (mine[0][0], mine[0][2]) == (piece.offset, piece.first_line)
        assert mine[-1][1] == piece.offset + piece.length
        assert piece.length <= bytes_max or piece.requests == 1
        if left:  # a chunk ends where the next request would exceed a limit, and not before
            full = piece.requests == requests_max
            assert full or left[0][1] - piece.offset > bytes_max
    assert left == []


@given(st.data(), LINES, st.integers(1, 7), st.integers(1, 100))
def test_a_chunk_of_a_rearranged_file_has_one_model_and_a_range_of_the_copy(
    data: st.DataObject, lines: list[tuple[int, int]], requests_max: int, bytes_max: int
) -> None:
    models = [data.draw(st.integers(0, 2)) for _ in lines]
    index = index_of(lines, models)
    order = arrange(index, prefix_gain_min=None) or list(range(len(lines)))
    position = offset = 0
    for piece in cut(index, Cut(requests_max, bytes_max), order):
        mine = order[position : position + piece.requests]
        assert {models[at] for at in mine} == {piece.model}
        assert piece.first_line == index.lines[mine[0]]
        assert (piece.offset, piece.length) == (offset, sum(lines[at][1] for at in mine))
        assert piece.requests <= requests_max
        assert piece.length <= bytes_max or piece.requests == 1
        position += piece.requests
        offset += piece.length
    assert position == len(lines)


def test_a_line_larger_than_a_chunk_is_a_chunk() -> None:
    index = index_of([(0, 10), (0, 300), (0, 10), (1, 10)])
    assert cut(index, Cut(10, 100)) == [
        Piece(0, 10, 1, 1, 0, None),
        Piece(10, 300, 2, 1, 0, None),
        Piece(310, 21, 3, 2, 0, None),
    ]


def test_without_requests_there_are_no_chunks() -> None:
    assert cut(RequestIndex(), Cut(10, 100)) == []


def grouped(groups: list[int], size: int = 300) -> RequestIndex:
    """Return an index of requests whose prompts begin as their group's do."""
    index = RequestIndex()
    for at, group in enumerate(groups):
        prompt = bytes([group]) * size + str(at).encode()
        index.add(at * 10, at * 10 + 10, at + 1, 0, memoryview(prompt))
    return index


def test_a_chunk_ends_between_groups_where_it_is_half_full_by_then() -> None:
    index = grouped([0, 1, 2] * 6)
    order = arrange(index, prefix_gain_min=0.1)
    assert order == [*range(0, 18, 3), *range(1, 18, 3), *range(2, 18, 3)]
    assert [piece.requests for piece in cut(index, Cut(8, 1000), order)] == [6, 6, 6]
    assert [piece.requests for piece in cut(index, Cut(4, 1000), order)] == [4, 2, 4, 2, 4, 2]
    assert [piece.requests for piece in cut(index, Cut(13, 1000), order)] == [12, 6]


def test_a_chunk_says_the_longest_prefix_that_all_its_prompts_share() -> None:
    index = grouped([0] * 4, size=1100)
    (piece,) = cut(index, Cut(10, 1000))
    assert piece.prefix == Prefix(1024, f"{index.prefixes(2)[0]:08x}")
    assert [piece.prefix for piece in cut(grouped([0, 1]), Cut(10, 1000))] == [None]
