"""How an online request's body is read and what its errors look like."""

from __future__ import annotations

import msgspec
import pytest

from batch_gateway.api.inference_errors import Broken, nobody_there, not_now, overloaded
from vllm_batch import online


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


@pytest.mark.parametrize(
    ("reasons", "why"),
    [({"not_ready"}, "starting"), ({"draining"}, "stops"), ({"draining", "not_ready"}, "starting")],
)
def test_who_is_there_but_takes_nothing_is_told_from_nobody(
    reasons: set[online.RefusalReason], why: str
) -> None:
    refusal = not_now("m", reasons)
    assert (refusal.status, refusal.headers["retry-after"]) == (503, "2")
    assert why in str(refusal)
    assert "Served now" not in str(refusal)


def test_every_message_comes_back_as_it_went() -> None:
    to_worker: list[online.ToWorker] = [
        online.Ask("r", "g", "m", "/v1/completions", 1.5, 10, b"\x00{}"),
        online.Credit("r", 3),
        online.Cancel("r"),
    ]
    for message in to_worker:
        assert online.decode_to_worker(online.encode(message)) == message
