"""Ranges and the header that offers a name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.api.content import content_disposition, requested_range
from batch_gateway.api.errors import HttpRefusal


@given(size=st.integers(0, 50), first=st.integers(0, 60), last=st.integers(0, 60))
def test_ranges_are_slices(size: int, first: int, last: int) -> None:
    content = bytes(range(size))
    wanted = {
        f"bytes={first}-": content[first:],
        f"bytes={first}-{last}": content[first : last + 1],
        f"bytes=-{last}": content[-last:] if last else b"",
    }
    for header, expected in wanted.items():
        try:
            found = requested_range(header, size)
        except HttpRefusal as refused:
            found = refused
        match found:
            case HttpRefusal():
                assert (found.status, expected) == (416, b"")
            case None:
                assert last < first
            case (start, length):
                assert content[start : start + length] == expected
                assert length > 0


@pytest.mark.parametrize("header", [None, "", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,2-3"])
def test_what_we_do_not_serve_means_the_whole(header: str | None) -> None:
    assert requested_range(header, 10) is None


@given(st.text())
def test_any_name_makes_a_safe_header(filename: str) -> None:
    try:
        filename.encode()
    except UnicodeEncodeError:
        return
    header = content_disposition(filename)
    assert header.isascii()
    assert header.isprintable()
    plain = header.removeprefix('attachment; filename="').partition('"')[0]
    assert "\\" not in plain
