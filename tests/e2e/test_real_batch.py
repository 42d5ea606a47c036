"""The main job end to end: the official client, the whole stack, real vLLM, a real small model."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.conftest import Round, jsonl


def text_of(row: dict[str, Any]) -> str:
    return str(row["response"]["body"]["choices"][0]["message"]["content"])


@pytest.mark.timeout(900)
def test_a_batch_of_chat_requests(real: Round) -> None:
    question = "What is the capital of France? Answer in one sentence."
    lines = [
        real.line("france", question, temperature=0),
        real.line("hot", "A temperature that the engine refuses.", temperature=9),
        real.line("nobody", messages=[]),
        real.line("two", "Say hello.", n=2, logprobs=True, seed=7, stop=["!"]),
        real.line("long", "word " * 3000),
        *[real.line(f"more-{number}", f"Count to {number}.") for number in range(20)],
    ]
    batch = real.wait(real.submit(jsonl(lines)), seconds=300)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    counts = batch.request_counts
    assert (counts.total, counts.completed + counts.failed) == (25, 25)
    answers = {row["custom_id"]: row for row in real.rows(batch.output_file_id)}
    errors = {row["custom_id"]: row for row in real.rows(batch.error_file_id)}
    assert "Paris" in text_of(answers["france"])
    assert len(answers["two"]["response"]["body"]["choices"]) == 2
    for refused in ("hot", "long"):
        assert errors[refused]["response"]["status_code"] == 400
        assert errors[refused]["response"]["body"]["error"]["message"]
    assert {f"more-{number}" for number in range(20)} <= answers.keys()
    assert batch.usage is not None
    used = sum(row["response"]["body"]["usage"]["total_tokens"] for row in answers.values())
    assert batch.usage.total_tokens == used
    assert batch.model == real.model


def test_the_other_endpoints_the_engine_has(real: Round) -> None:
    bodies = {
        "/v1/completions": {"prompt": "The capital of France is", "max_tokens": 8},
        "/v1/responses": {"input": "Say hello.", "max_output_tokens": 16},
        "/v1/embeddings": {"input": "a chat model has none"},
    }
    batches = {}
    for endpoint, body in bodies.items():
        line = {
            "custom_id": endpoint,
            "method": "POST",
            "url": endpoint,
            "body": {"model": real.model, **body},
        }
        batches[endpoint] = real.wait(real.submit(jsonl([line]), endpoint=endpoint), seconds=120)
    for endpoint in ("/v1/completions", "/v1/responses"):
        (row,) = real.rows(batches[endpoint].output_file_id)
        assert row["response"]["status_code"] == 200
    (refused,) = real.rows(batches["/v1/embeddings"].error_file_id)
    assert refused["response"]["status_code"] in {400, 404}
    assert refused["response"]["body"]["error"]["message"]


def test_cancelling_frees_the_engine(real: Round) -> None:
    lines = [
        real.line(f"r-{number}", f"Tell story {number}.", max_tokens=700, ignore_eos=True)
        for number in range(200)
    ]
    batch = real.submit(jsonl(lines))
    while batch.status == "validating":
        batch = real.client.batches.retrieve(batch.id)
    real.client.batches.cancel(batch.id)
    done = real.wait(batch, seconds=60)
    assert done.status == "cancelled"
    quick = real.wait(real.submit(jsonl([real.line("next", "Hello")])), seconds=60)
    assert quick.status == "completed"
