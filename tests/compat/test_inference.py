"""Online requests with the official client, sync and async: answers, streams, and error classes.

A worker runs beside the gateway; its engine is simulated and takes one request at a time.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.facts import append

from vllm_batch import ids
from vllm_batch.event_store import jetstream
from vllm_batch.events.model import ModelRegistered
from vllm_batch.local.stack import LocalStack
from vllm_batch.settings import Settings

MODEL, ALIAS, ABSENT = "simulated-model", "usual", "absent"
README = Path(__file__).parents[2] / "README.md"
EXAMPLE = re.compile(r"^## Online requests\n.*?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def chat(prompt: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


async def register(settings: Settings) -> None:
    """Give the worker's model another name, and make one known that nobody serves."""
    models = [
        ModelRegistered(
            model_key=ids.model_key(name), name=name, source=name, aliases=aliases,
            requested_by="test",
        )
        for name, aliases in ((ABSENT, []), (MODEL, [ALIAS]))  # the last one tells of both
    ]  # fmt: skip
    async with jetstream.connect(settings, source="test") as store:
        await append(store, *models)


def _answers(client: openai.OpenAI) -> bool:
    """Tell whether the gateway has heard of the alias."""
    try:
        client.with_options(max_retries=20).chat.completions.create(**chat(model=ALIAS))
    except openai.NotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    overrides = {"engine_max_num_seqs": 1, "heartbeat_seconds": 0.1}
    home = tmp_path_factory.mktemp("inference")
    roles = {"nats", "api", "worker"}
    with LocalStack(home, only=roles, engine="simulated", settings_overrides=overrides) as running:
        asyncio.run(register(running.settings))
        with openai.OpenAI(base_url=running.api_url, api_key=running.api_key) as client:
            deadline = time.monotonic() + 60
            while not _answers(client):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield running


@pytest.fixture
def sync(stack: LocalStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0) as client:
        yield client


@pytest.fixture
async def client(stack: LocalStack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=stack.api_url, api_key=stack.api_key, max_retries=0
    ) as opened:
        yield opened


def test_the_synchronous_client_gets_answers_whole_and_streamed(sync: openai.OpenAI) -> None:
    whole = sync.chat.completions.create(**chat())
    assert whole.choices[0].message.content
    with sync.chat.completions.create(
        **chat(), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.startswith("simulated answer")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert sync.completions.create(model=MODEL, prompt="Hi").choices[0].text
    assert sync.responses.create(model=MODEL, input="Hi").output_text
    vector = sync.embeddings.create(model=MODEL, input="Hi").data[0].embedding
    assert all(isinstance(value, float) for value in vector)


def test_the_helper_for_streams_puts_them_together(sync: openai.OpenAI) -> None:
    with sync.chat.completions.stream(**chat("helped")) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


async def test_an_alias_means_the_model_that_has_it(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**chat(model=ALIAS))
    assert whole.model == MODEL
    streamed = await client.chat.completions.create(**chat(model=ALIAS), stream=True)
    assert {chunk.model async for chunk in streamed} == {MODEL}


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (chat(model="nobody's"), openai.NotFoundError, "model_not_found"),
        (chat(model=ABSENT), openai.InternalServerError, "model_not_served"),
        (chat("[[sim:400]]"), openai.BadRequestError, "simulated_400"),
        (chat("[[sim:422]]"), openai.UnprocessableEntityError, "simulated_422"),
    ],
    ids=["unknown", "not served", "refused", "unprocessable"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_of_the_classes_that_the_client_has_for_them(
    client: openai.AsyncOpenAI,
    body: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(**body, stream=stream)
    assert caught.value.code == code
    if code == "model_not_served":
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert MODEL in caught.value.message


async def test_a_busy_worker_is_a_rate_limit_that_the_client_waits_out(
    client: openai.AsyncOpenAI,
) -> None:
    held = await client.chat.completions.create(**chat("[[sim:sleep=8]]"), stream=True)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**chat())
    assert caught.value.code == "overloaded"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    patient = client.with_options(max_retries=40)
    answer, _ = await asyncio.gather(patient.chat.completions.create(**chat()), exhausted(held))
    assert answer.choices[0].message.content


async def exhausted(stream: openai.AsyncStream[Any]) -> None:
    async for _ in stream:
        pass


async def test_the_example_of_the_readme(stack: LocalStack) -> None:
    example = EXAMPLE.search(README.read_text(encoding="utf-8"))
    assert example is not None
    variables = {
        "OPENAI_BASE_URL": stack.api_url, "OPENAI_API_KEY": stack.api_key,
        "VLLM_BATCH_MODEL": MODEL,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", example[1], env=os.environ | variables,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert said.startswith(b"simulated answer")
