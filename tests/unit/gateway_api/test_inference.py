"""How an online request's body is read and what its errors look like."""

from __future__ import annotations

import msgspec
import pytest

from batch_gateway.api.inference_errors import Broken, nobody_there, overloaded
from batch_gateway.api.inference_run import _usage_in
from vllm_batch import online


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}', (3, 4)),
        (b'data: {"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n', (3, 4)),
        (
            b'event: x\ndata: {"response":{"usage":{"input_tokens":5,"output_tokens":6}}}\n\n',
            (5, 6),
        ),
        (b'{"usage":{"prompt_tokens":3}}', (3, 0)),
        (b"", (0, 0)),
        (b"data: {", (0, 0)),
    ],
)
def test_usage_is_found_where_the_engine_says_it(answer: bytes, tokens: tuple[int, int]) -> None:
    assert _usage_in(answer) == tokens


@pytest.mark.parametrize(
    ("code", "status", "header"),
    [
        ("timeout", 504, "x-should-retry"),
        ("engine_crash", 500, "x-should-retry"),
        ("worker_lost", 503, "retry-after"),
    ],
)
def test_what_would_only_happen_again_is_not_to_be_tried_again(
    code: str, status: int, header: str
) -> None:
    response = Broken(code, "why").response()
    assert response.status_code == status
    assert header in response.headers


def test_an_answer_that_breaks_off_ends_in_one_whole_event() -> None:
    event = Broken("worker_lost", "gone\nfor good").event()
    assert event.startswith(b"data: ")
    assert event.count(b"\n") == 2
    error = msgspec.json.decode(event[6:])["error"]
    assert error["code"] == "worker_lost"


def test_who_is_there_is_named() -> None:
    refusal = nobody_there("m", ["a", "b"])
    assert refusal.status == 503
    assert "a, b" in str(refusal)
    assert "No model is served" in str(nobody_there("m", []))
    assert overloaded().headers["retry-after"]


def test_every_message_comes_back_as_it_went() -> None:
    to_worker: list[online.ToWorker] = [
        online.Ask("r", "g", "m", "/v1/completions", 1.5, 10, b"\x00{}"),
        online.Credit("r", 3),
        online.Cancel("r"),
    ]
    for message in to_worker:
        assert online.decode_to_worker(online.encode(message)) == message
