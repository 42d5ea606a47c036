"""JSON bodies of any kind end in a value or in an error that names the parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.api import request_body
from vllm_batch.errors import InvalidInput

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def outcome(read: Callable[[], Any]) -> Any:
    """Return what reading gives, or the error it ends in."""
    try:
        return read()
    except InvalidInput as error:
        return error


@given(ANYTHING)
def test_texts(value: Any) -> None:
    found = outcome(lambda: request_body.required_text({"p": value}, "p", 20))
    if isinstance(found, InvalidInput):
        assert found.param == "p"
        assert not isinstance(value, str) or not value or len(value) > 20 or "\0" in value
    else:
        assert found == value


@given(ANYTHING)
def test_integers(value: Any) -> None:
    found = outcome(lambda: request_body.checked_integer(value, "p", -5, 5))
    if isinstance(found, InvalidInput):
        assert found.param == "p"
    else:
        assert found == value
        assert type(value) is int


@given(ANYTHING, ANYTHING)
def test_expiry(anchor: Any, seconds: Any) -> None:
    for value in (anchor, {"anchor": anchor, "seconds": seconds}):
        found = outcome(lambda given=value: request_body.expiry_seconds({"p": given}, "p"))
        if isinstance(found, InvalidInput):
            assert (found.param or "").startswith("p")
        else:
            assert found is None or (3600 <= found <= 2_592_000)


def test_expiry_takes_its_bounds() -> None:
    for seconds in (3600, 2_592_000):
        value = {"anchor": "created_at", "seconds": seconds}
        assert request_body.expiry_seconds({"p": value}, "p") == seconds
    assert request_body.expiry_seconds({}, "p") is None


def test_a_missing_text_is_named() -> None:
    with pytest.raises(InvalidInput) as missing:
        request_body.required_text({}, "p")
    assert (missing.value.param, missing.value.detail_code) == ("p", "missing_required_parameter")
