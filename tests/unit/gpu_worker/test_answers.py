"""What goes to an engine and comes back: nothing is touched that need not be."""

from __future__ import annotations

import msgspec
import pytest

from batch_gpu_worker.answers import NotAnAnswer, error_of, fit_for_batch, usage_of
from vllm_batch.events import Usage


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[]}',
        b'{"model":"m","n": 12345678901234567890123, "x": 1.10}',
        b'{"messages":[{"role":"user","content":"\\"stream\\": true"}]}',
        b'{"metadata":{"stream":true}}',
    ],
)
def test_a_body_that_does_not_stream_stays_byte_for_byte(body: bytes) -> None:
    assert fit_for_batch(body) is body


def test_streaming_is_taken_out_and_other_values_stay_byte_for_byte() -> None:
    body = b'{"big": 12345678901234567890123, "stream": true, "f":1.10,"stream_options":{"a":1}}'
    assert fit_for_batch(body) == b'{"big":12345678901234567890123,"f":1.10}'


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}', Usage(3, 0, 4)),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3}}', Usage(3)),
        (
            (
                b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":5},'
                b'"completion_tokens":4,"completion_tokens_details":{"reasoning_tokens":2}}}'
            ),
            Usage(9, 5, 4, 2),
        ),
        (
            (
                b'{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":5},'
                b'"output_tokens":4,"output_tokens_details":{"reasoning_tokens":2}}}'
            ),
            Usage(9, 5, 4, 2),
        ),
        (b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":null}}', Usage(3)),
        (b'{"usage":null}', Usage()),
        (b"{}", Usage()),
        (b'{"usage":"none of your business","choices":[]}', Usage()),
        ('{"text":"Zürich 🏔","usage":{"prompt_tokens":1}}'.encode(), Usage(1)),
    ],
)
def test_usage_is_read_from_every_shape(body: bytes, usage: Usage) -> None:
    assert usage_of(body) == usage


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"data: {}\n\n",
        b"[]",
        b'"text"',
        b'{"a":1',
        b'{"usage":5,"a":',
        b'{"text":"\xff\xfe"}',
        b"[" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_cannot_stand_in_a_line_is_no_answer(body: bytes) -> None:
    with pytest.raises(NotAnAnswer):
        usage_of(body)


def test_an_error_object_is_kept_as_it_is() -> None:
    body = b'{"error": {"message": "too long", "code": 400}, "extra": 1.10}'
    assert error_of(400, body) is body


@pytest.mark.parametrize(
    ("status", "body", "message", "kind"),
    [
        (400, b'{"detail":"bad body"}', "bad body", "invalid_request_error"),
        (422, b'{"detail":[{"loc":1}]}', '{"detail":[{"loc":1}]}', "invalid_request_error"),
        (502, b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>", "server_error"),
        (500, b"", "HTTP 500", "server_error"),
        (400, b"\xff", "�", "invalid_request_error"),
        (400, b"x" * 10_000, "x" * 2000, "invalid_request_error"),
    ],
)
def test_other_errors_become_an_error_object(
    status: int, body: bytes, message: str, kind: str
) -> None:
    error = msgspec.json.decode(error_of(status, body))["error"]
    assert error == {"message": message, "type": kind, "param": None, "code": f"http_{status}"}
