"""What a batch may be asked for with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.api import batch_request
from vllm_batch.errors import InvalidInput

DAY = 24 * 3600
BODY: dict[str, Any] = {
    "input_file_id": "file-a",
    "endpoint": "/v1/embeddings",
    "completion_window": "24h",
}


def parse(**changes: Any) -> batch_request.BatchRequest:
    return batch_request.parse(BODY | changes, window_seconds_max=30 * DAY)


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("24h", DAY), ("1m", 60), ("90m", 5400), ("30d", 30 * DAY), ("43200m", 30 * DAY)],
)
def test_windows(window: str, seconds: int) -> None:
    request = parse(completion_window=window)
    assert (request.completion_window, request.window_seconds) == (window, seconds)


@given(st.text() | st.integers() | st.none() | st.floats())
def test_any_other_window_is_refused(window: Any) -> None:
    if isinstance(window, str) and batch_request._WINDOW.fullmatch(window):
        return
    with pytest.raises(InvalidInput) as refused:
        parse(completion_window=window)
    assert refused.value.param == "completion_window"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_metadata_of_any_other_shape_is_refused_or_kept(value: Any) -> None:
    try:
        kept = parse(metadata={"k": value}).metadata
    except InvalidInput:
        return
    assert kept == {"k": value}


def test_every_endpoint_of_the_standard_is_known() -> None:
    for endpoint in batch_request.SERVED_ENDPOINTS:
        assert parse(endpoint=endpoint).endpoint == endpoint
    for endpoint in batch_request.UNSERVED_ENDPOINTS:
        with pytest.raises(InvalidInput, match="cannot serve"):
            parse(endpoint=endpoint)


def test_equal_requests_have_equal_fingerprints() -> None:
    one = parse(metadata={"a": "1", "b": "2"}, ignored=1)
    other = parse(metadata={"b": "2", "a": "1"})
    assert one.fingerprint() == other.fingerprint()
    for changed in (parse(priority=1), parse(metadata={}), parse(completion_window="23h")):
        assert changed.fingerprint() != one.fingerprint()


@pytest.mark.parametrize("priority", [-101, 101, True, 1.0, "1"])
def test_priorities_out_of_range_are_refused(priority: Any) -> None:
    with pytest.raises(InvalidInput):
        parse(priority=priority)
    assert parse(priority=None).priority == 0
    assert parse(priority=-100).priority == -100


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_idempotency_keys_have_bounds(key: str) -> None:
    with pytest.raises(InvalidInput):
        batch_request.checked_idempotency_key(key)
    assert batch_request.checked_idempotency_key("k" * 255) == "k" * 255
    assert batch_request.checked_idempotency_key(None) is None
