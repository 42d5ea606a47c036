"""Segments: what goes in comes out; what is cut short is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batch.errors import BlobError
from vllm_batch.segments import Result, decode_segment, encode_segment

results = st.lists(
    st.builds(Result, st.integers(0, 2**31), st.booleans(), st.binary(min_size=1, max_size=200)),
    max_size=40,
)


@given(results)
def test_what_is_encoded_is_decoded(rows: list[Result]) -> None:
    assert list(decode_segment(encode_segment(rows))) == rows


@given(results, st.data())
def test_a_segment_that_is_cut_short_is_noticed(rows: list[Result], data: st.DataObject) -> None:
    whole = encode_segment(rows)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BlobError):
        list(decode_segment(whole[:cut]))
