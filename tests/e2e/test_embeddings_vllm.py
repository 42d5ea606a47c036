"""Embeddings through the whole stack, on real vLLM.

The engine is vLLM with ``--runner pooling --convert embed`` over the small chat model that the
other tests have: its last hidden state is the embedding. That is what vLLM does with any decoder
model, so the request takes the very way it takes with a model trained for embeddings, and nothing
more has to be downloaded. What the vectors are worth is not what is tested here.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.e2e.conftest import Round, jsonl

from vllm_batch.local.stack import LocalStack

ENDPOINT = "/v1/embeddings"
DIMENSIONS = 576
"""SmolLM2-135M's hidden size."""


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    arguments = ("--enforce-eager", "--max-model-len", "1024", "--runner", "pooling",
                 "--convert", "embed")  # fmt: skip
    home = tmp_path_factory.mktemp("pooling") / "stack"
    with LocalStack(home, engine="vllm", settings_overrides={"engine_args": arguments}) as stack:
        client = openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        with client:
            yield Round(stack, client)


def line(custom_id: str, model: str, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"model": model, **body}
    }  # fmt: skip


def vectors(row: dict[str, Any]) -> list[list[float]]:
    return [one["embedding"] for one in row["response"]["body"]["data"]]


def similarity(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.hypot(*one) / math.hypot(*other)


@pytest.mark.timeout(600)
def test_a_batch_of_embeddings(pooling: Round) -> None:
    model = pooling.model
    lines = [
        line("text", model, input="The river is wide."),
        line("again", model, input="The river is wide."),
        line("several", model, input=["The river is wide.", "Bread is baked at night."]),
        line("base64", model, input="The river is wide.", encoding_format="base64"),
        line("too long", model, input="word " * 3000),
        *[line(f"more-{number}", model, input=f"Sentence {number}.") for number in range(20)],
    ]
    batch = pooling.wait(pooling.submit(jsonl(lines), endpoint=ENDPOINT), seconds=300)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 25, "completed": 24, "failed": 1}
    rows = {row["custom_id"]: row for row in pooling.rows(batch.output_file_id)}
    assert list(rows) == [one["custom_id"] for one in lines if one["custom_id"] != "too long"]
    (text,), (again,) = vectors(rows["text"]), vectors(rows["again"])
    assert len(text) == DIMENSIONS
    assert similarity(text, again) == pytest.approx(1, abs=1e-3)
    river, bread = vectors(rows["several"])
    assert similarity(text, river) == pytest.approx(1, abs=1e-3)
    assert similarity(text, bread) < 0.999
    (packed,) = vectors(rows["base64"])
    unpacked = list(struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(packed)))  # type: ignore[arg-type]
    assert similarity(text, unpacked) == pytest.approx(1, abs=1e-3)
    (refused,) = pooling.rows(batch.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("too long", 400)
    assert batch.usage is not None
    used = sum(row["response"]["body"]["usage"]["total_tokens"] for row in rows.values())
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (used, 0)


@pytest.mark.timeout(600)
def test_embeddings_online(pooling: Round) -> None:
    answer = pooling.client.with_options(max_retries=100).embeddings.create(
        model=pooling.model, input=["The river is wide.", "Bread is baked at night."]
    )
    river, bread = (one.embedding for one in answer.data)
    assert len(river) == DIMENSIONS
    assert similarity(river, bread) < 0.999
    assert answer.usage.prompt_tokens > 0
    again = pooling.client.embeddings.create(
        model=pooling.model, input="The river is wide.", encoding_format="float"
    )
    assert similarity(river, again.data[0].embedding) == pytest.approx(1, abs=1e-3)
    with pytest.raises(openai.BadRequestError, match="1024"):
        pooling.client.embeddings.create(model=pooling.model, input="word " * 3000)
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        pooling.client.chat.completions.create(
            model=pooling.model, messages=[{"role": "user", "content": "Hello"}]
        )
