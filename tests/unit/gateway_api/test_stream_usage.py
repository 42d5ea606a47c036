"""What streams used: asked of every stream, seen by those who asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.api.stream_usage import (
    EVENT_BYTES_MAX,
    StreamUsage,
    Tokens,
    tokens_in,
    with_usage,
)

CHAT = "/v1/chat/completions"
PART = b'data: {"choices":[{"delta":{"content":"Hi \\"usage\\": "}}]}\n\n'
FINISHED = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
STAMPED = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"system_fingerprint":"v"}\n\n'
USED = (
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}'
    b',"system_fingerprint":"v"}\n\n'
)
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}', (3, 4)),
        (b'{\n  "usage": {\n    "prompt_tokens": 3, "completion_tokens": 4\n  }\n}\n', (3, 4)),
        (USED, (3, 4)),
        (
            b'event: x\ndata: {"response":{"usage":{"input_tokens":5,"output_tokens":6}}}\n\n',
            (5, 6),
        ),
        (b'{"usage":{"prompt_tokens":3}}', (3, 0)),
        (b"", None),
        (b"data: {", None),
        (b'{"usage":null}', None),
    ],
)
def test_usage_is_found_where_the_engine_says_it(
    answer: bytes, tokens: tuple[int, int] | None
) -> None:
    assert tokens_in(answer) == tokens


@pytest.mark.parametrize("stream", [True, 1, "true", "YES", "on"])
@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"other": 1}, {"continuous_usage_stats": True}]
)
def test_a_stream_is_asked_for_its_usage(stream: Any, options: Any) -> None:
    body = {"model": "m", "big": 2**80, "stream": stream, "stream_options": options}
    changed, hidden = with_usage(CHAT, b'{"big":%d,"stream":%b,"stream_options":%b}' % (
        body["big"], msgspec.json.encode(stream), msgspec.json.encode(options)
    ))  # fmt: skip
    assert hidden
    assert b'"big":1208925819614629174706176' in changed
    said = msgspec.json.decode(changed)
    asked = {"include_usage": True, "continuous_usage_stats": False}
    assert said["stream_options"] == {**(options or {}), **asked}


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {}),
        (CHAT, {"stream": False}),
        (CHAT, {"stream": None, "stream_options": None}),
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"stream": True, "stream_options": "wrong"}),
        ("/v1/responses", {"stream": True}),
        ("/v1/embeddings", {"stream": True}),
    ],
)
def test_what_is_no_stream_or_asks_itself_stays_as_it_is(
    endpoint: str, fields: dict[str, Any]
) -> None:
    body = msgspec.json.encode({"model": "m", **fields})
    assert with_usage(endpoint, body) == (body, False)


@given(st.data(), st.booleans(), st.booleans())
def test_however_a_stream_is_cut_the_client_gets_what_it_asked_for(
    data: st.DataObject, hidden: bool, crlf: bool
) -> None:
    events = [PART, FINISHED, PART, FINISHED, USED, DONE]
    shown = [PART, FINISHED, PART, STAMPED, DONE] if hidden else events
    if crlf:
        events = [event.replace(b"\n", b"\r\n") for event in events]
        shown = [event.replace(b"\n", b"\r\n") for event in shown]
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    usage, got = StreamUsage(hidden=hidden), b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += usage.feed(stream[start:end])
    got += usage.end(broken=False)
    assert got == b"".join(shown)
    assert usage.tokens == Tokens(3, 4)


def test_usage_beside_a_choice_is_counted_and_passed_on() -> None:
    both = b'data: {"choices":[{}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    usage = StreamUsage(hidden=True)
    assert usage.feed(both) == both
    assert usage.tokens == Tokens(1, 2)


def test_a_stream_that_breaks_off_counts_a_token_for_each_event() -> None:
    usage = StreamUsage(hidden=True)
    assert usage.feed(PART + FINISHED + PART[:9]) == PART
    assert usage.end(broken=True) == FINISHED
    assert usage.tokens == Tokens(0, 2)


def test_what_ends_without_usage_is_passed_on_whole() -> None:
    usage = StreamUsage(hidden=True)
    assert usage.feed(PART + FINISHED + DONE + b"rest") == PART + FINISHED + DONE
    assert usage.end(broken=False) == b"rest"
    assert usage.feed(FINISHED) == b""
    assert usage.end(broken=False) == FINISHED


def test_an_event_without_an_end_passes_in_pieces() -> None:
    usage = StreamUsage(hidden=True)
    assert usage.feed(b"x" * EVENT_BYTES_MAX) == b""
    assert len(usage.feed(b"x")) == EVENT_BYTES_MAX + 1
    assert usage.end(broken=False) == b""
