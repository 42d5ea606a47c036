"""Online requests against real vLLM through the whole path, with the official client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from pydantic import BaseModel
from tests.e2e.conftest import Round
from tests.worker_bench import until

pytestmark = pytest.mark.timeout(900)

QUESTION: list[Any] = [
    {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
]
RUNNING = re.compile(rb"^vllm:num_requests_running\{.*\} (\S+)$", re.MULTILINE)
# Without "strict", vLLM 0.32 holds a call to its function's name and to JSON, not to the schema.
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    name: str
    population: int


def engine(real: Round) -> aiohttp.ClientSession:
    """A session with the engine itself, past everything of ours."""
    settings = real.stack.settings
    sockets = list((Path(settings.home) / "run").glob("engine-*.sock"))
    return aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(str(sockets[0])))


async def running(session: aiohttp.ClientSession) -> float:
    async with session.get("/metrics") as answer:
        return sum(map(float, RUNNING.findall(await answer.read())))


def comparable(answer: bytes) -> bytes:
    """Return an answer without what differs from one call to the next: ids and times."""
    return re.sub(rb'"(?:id|item_id|call_id|created\w*|\w+_at)": ?(?:"[^"]*"|[0-9.]+)', b"", answer)


@pytest.fixture
async def client(real: Round) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=real.stack.api_url, api_key=real.stack.api_key, max_retries=0
    ) as opened:
        yield opened


def test_a_chat_with_the_synchronous_client(real: Round) -> None:
    asked: Any = {"model": real.model, "messages": QUESTION, "temperature": 0, "max_tokens": 16}
    whole = real.client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert text is not None
    assert "Paris" in text
    with real.client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == whole.usage


async def test_what_else_a_chat_may_ask_for(real: Round, client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": real.model, "messages": QUESTION, "max_tokens": 8}
    two, spoken, made = await asyncio.gather(
        client.chat.completions.create(**asked, n=2, seed=1),
        client.chat.completions.create(**asked, logprobs=True, top_logprobs=2),
        client.chat.completions.parse(**asked | {"max_tokens": 60}, response_format=City),
    )
    assert [choice.index for choice in two.choices] == [0, 1]
    assert spoken.choices[0].logprobs is not None
    assert spoken.choices[0].logprobs.content is not None
    assert len(spoken.choices[0].logprobs.content[0].top_logprobs) == 2
    assert made.choices[0].message.parsed is not None


@pytest.mark.parametrize("choice", ["required", "weather"])
async def test_tools(real: Round, client: openai.AsyncOpenAI, choice: str) -> None:
    named: Any = {"type": "function", "function": {"name": choice}}
    asked: Any = {
        "model": real.model, "messages": QUESTION, "tools": [WEATHER], "max_tokens": 60,
        "tool_choice": choice if choice == "required" else named, "temperature": 0,
    }  # fmt: skip
    said = (await client.chat.completions.create(**asked)).choices[0].message
    assert said.tool_calls
    call = said.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome"}


async def test_the_other_endpoints(real: Round, client: openai.AsyncOpenAI) -> None:
    done = await client.completions.create(
        model=real.model, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert "Paris" in done.choices[0].text
    answer = await client.responses.create(model=real.model, input="Hi", max_output_tokens=8)
    assert answer.output_text
    events = [
        event.type
        async for event in await client.responses.create(
            model=real.model, input="Hi", max_output_tokens=8, stream=True
        )
    ]
    assert events[0] == "response.created"
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        await client.embeddings.create(model=real.model, input="a")


CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SCHEMA: Any = {
    "type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}
}  # fmt: skip
STREAM: dict[str, Any] = {"stream": True}
SEVERAL: dict[str, Any] = {"n": 2, "temperature": 0.8, "seed": 3}  # greedy, there can be only one
ALL = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "logprobs": True}
TOOLS: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60}
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": QUESTION, "temperature": 0, "max_tokens": 12},
    TEXT: {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 8},
    RESPONSE: {"input": "Hi", "temperature": 0, "max_output_tokens": 8},
}
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "chat, several with log-probabilities": (CHAT, SEVERAL | {"logprobs": True, "top_logprobs": 3}),
    "chat, stream": (CHAT, STREAM),
    "chat, stream with all": (CHAT, STREAM | SEVERAL | ALL | {"top_logprobs": 2}),
    "chat, tools": (CHAT, TOOLS),
    "chat, stream of tools": (CHAT, STREAM | TOOLS),
    "chat, schema": (CHAT, {"response_format": SCHEMA, "max_tokens": 40}),
    "chat, stream of schema": (CHAT, STREAM | {"response_format": SCHEMA, "max_tokens": 40}),
    "chat, refused": (CHAT, {"temperature": 9}),
    "chat, stream, refused": (CHAT, STREAM | {"max_tokens": -1}),
    "text": (TEXT, {"logprobs": 2, "echo": True}),
    "text, several": (TEXT, SEVERAL | {"prompt": ["One, two,", "Red, green,"]}),
    "text, stream of text alone": (TEXT, STREAM),
    "text, stream": (TEXT, STREAM | {"stream_options": {"include_usage": True}, "logprobs": 1}),
    "response": (RESPONSE, {}),
    "response, stream": (RESPONSE, STREAM),
    "response, schema": (
        RESPONSE, {"text": {"format": {"type": "json_schema", **SCHEMA["json_schema"]}}}
    ),
    "response, refused": (RESPONSE, {"input": 7}),
}  # fmt: skip
TRIES = 10
"""A busy vLLM puts several tokens into one event, each time others: it is asked again then."""


@pytest.mark.parametrize("case", SAME)
async def test_it_is_what_the_engine_says_byte_for_byte(real: Round, case: str) -> None:
    path, changes = SAME[case]
    body = {"model": real.model} | ASKED[path] | changes
    key = {"authorization": f"Bearer {real.stack.api_key}"}

    async def answer(session: aiohttp.ClientSession, url: str) -> tuple[int, str, bytes]:
        async with session.post(url, json=body) as said:
            return said.status, said.headers["content-type"], comparable(await said.read())

    async with engine(real) as direct, aiohttp.ClientSession(headers=key) as ours:
        await answer(direct, path)  # the prompt is in the cache then, for both
        for _ in range(TRIES):
            expected = await answer(direct, path)
            passed_on = await answer(ours, real.stack.api_url + path.removeprefix("/v1"))
            if passed_on == expected:
                break
    assert passed_on == expected
    refused = case.endswith("refused")
    assert passed_on[0] == (400 if refused else 200)
    streams = "stream" in case and not refused
    assert passed_on[1].startswith("text/event-stream" if streams else "application/json")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_in_the_engine(
    real: Round, client: openai.AsyncOpenAI, stream: bool
) -> None:
    async def ask() -> None:
        answer: Any = await client.chat.completions.create(
            model=real.model, messages=QUESTION, max_tokens=900, stream=stream,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        async for _ in answer:
            pass

    async with engine(real) as session:

        async def is_running(count: int) -> bool:
            return await running(session) == count

        await until(lambda: is_running(0))
        call = asyncio.create_task(ask())
        await until(lambda: is_running(1))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: is_running(0), 20)
