"""Online requests through real processes: gateway, NATS, worker; the engine is simulated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest
from tests.worker_bench import until

from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import telemetry
from vllm_batch.tasks import end

MODEL = "simulated-model"
SLOW = "[[sim:sleep=20]]"


class Online:
    """A gateway and a worker that takes two online requests at once."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack
        self.client = openai.AsyncOpenAI(
            base_url=stack.api_url, api_key=stack.api_key, max_retries=0, timeout=30
        )

    @property
    def http(self) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {self.stack.api_key}"}
        return httpx2.AsyncClient(base_url=self.stack.api_url, headers=headers, timeout=30)

    async def in_flight(self) -> int:
        """How many online requests the workers say they have."""
        import nats

        client = await nats.connect(self.stack.settings.nats_url)
        try:
            beats = await telemetry.last_heartbeats(client)
        finally:
            await client.close()
        return sum(beat.online_in_flight for beat, _ in beats.values())

    async def is_in_flight(self, count: int) -> bool:
        return await self.in_flight() == count


def chat(prompt: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    overrides = {
        "engine_max_num_seqs": 2,
        "heartbeat_seconds": 0.1,
        "inference_check_seconds": 0.2,
        "inference_silence_seconds": 4.0,
        "inference_accept_seconds": 3.0,
        "lease_seconds": 2,
    }
    home = tmp_path_factory.mktemp("online")
    roles = {"nats", "api", "worker"}
    with LocalStack(home, only=roles, engine="simulated", settings_overrides=overrides) as running:
        yield running


@pytest.fixture
async def online(stack: LocalStack) -> AsyncIterator[Online]:
    bench = Online(stack)
    async with bench.client:

        async def served() -> bool:
            try:
                await bench.client.chat.completions.create(**chat())
            except openai.APIStatusError:
                return False
            return True

        await until(served)
        yield bench


async def test_every_endpoint_answers(online: Online) -> None:
    client = online.client
    assert (await client.chat.completions.create(**chat())).choices[0].message.content
    assert (await client.completions.create(model=MODEL, prompt="Hi")).choices[0].text
    assert (await client.responses.create(model=MODEL, input="Hi")).output_text
    embedded = await client.embeddings.create(
        model=MODEL, input=["a", "b"], encoding_format="float"
    )
    assert len(embedded.data) == 2


async def test_a_stream_says_what_the_whole_answer_says(online: Online) -> None:
    events = [
        chunk
        async for chunk in await online.client.chat.completions.create(
            **chat("streamed"), stream=True, stream_options={"include_usage": True}
        )
    ]
    assert all(chunk.model == MODEL for chunk in events)
    assert events[-1].usage is not None
    text = "".join(chunk.choices[0].delta.content or "" for chunk in events[:-1])
    assert text.startswith("simulated answer")
    parts = [
        event
        async for event in await online.client.responses.create(
            model=MODEL, input="Hi", stream=True
        )
    ]
    assert [parts[0].type, parts[-1].type] == ["response.created", "response.completed"]


async def test_a_plain_client_gets_plain_text(online: Online) -> None:
    async with online.http as http:
        for body in ({"prompt": "Hi"}, {"messages": chat()["messages"], "model": MODEL}):
            said = (await http.post("/inference", json=body)).json()
            assert said["text"].startswith("simulated answer")
            assert said["model"] == MODEL
            assert said["usage"]["total_tokens"] > 0
            assert said["latency_ms"] > 0
        refused = await http.post("/inference", json={"prompt": "Hi", "stream": True})
        assert refused.status_code == 400
        assert "/v1/chat/completions" in refused.json()["error"]["message"]


async def test_an_unknown_model_is_said_to_be_unknown(online: Online) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await online.client.chat.completions.create(**chat() | {"model": "nobody's"})
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"model":' + b"[" * 100_000, 400),
        (b'{"model":"simulated-model","messages":' + b"[" * 100_000, 400),
        (b'{"model":"simulated-model","messages":"\xff"', 400),
        (b'{"model":"' + b"x" * 5_000_000 + b'"}', 413),
        (b"", 400),
    ],
    ids=["cut", "list", "no model", "deep model", "deep", "not UTF-8", "large", "none"],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/inference"])
async def test_a_bad_body_is_refused_clearly(
    online: Online, path: str, body: bytes, status: int
) -> None:
    async def piece_by_piece() -> AsyncIterator[bytes]:  # without a Content-Length
        for start in range(0, len(body), 1_000_000):
            yield body[start : start + 1_000_000]

    async with online.http as http:
        for content in (body, piece_by_piece()):
            answer = await http.post(path, content=content)
            assert answer.status_code == status
            assert answer.json()["error"]["message"]


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", ""])
async def test_a_deadline_that_is_none_is_refused(online: Online, seconds: str) -> None:
    async with online.http as http:
        headers = {"x-request-timeout-seconds": seconds}
        answer = await http.post("/chat/completions", json=chat(), headers=headers)
        assert answer.status_code == 400
        assert "x-request-timeout-seconds" in answer.json()["error"]["message"]


async def test_what_the_engine_refuses_is_passed_on(online: Online) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await online.client.chat.completions.create(**chat("[[sim:418]]"))
    assert caught.value.status_code == 418
    assert caught.value.code == "simulated_418"


async def test_more_than_fits_is_refused_with_a_pause(online: Online) -> None:
    async with online.http as http:
        slow = [
            asyncio.create_task(http.post("/chat/completions", json=chat(SLOW + str(n))))
            for n in range(2)
        ]
        await until(lambda: online.is_in_flight(2))
        answer = await http.post("/chat/completions", json=chat())
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
    await until(lambda: online.is_in_flight(0))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_request(online: Online, stream: bool) -> None:
    async with online.http as http:
        call = asyncio.create_task(http.post("/chat/completions", json=chat(SLOW, stream=stream)))
        await until(lambda: online.is_in_flight(1))
        await end(call)
    await until(lambda: online.is_in_flight(0), 10)


async def test_a_deadline_ends_a_request(online: Online) -> None:
    async with online.http as http:
        headers = {"x-request-timeout-seconds": "1"}  # before the first event of a stream, too
        answer = await http.post("/chat/completions", json=chat(SLOW), headers=headers)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        answer = await http.post("/chat/completions", json=chat(SLOW, stream=True), headers=headers)
        assert answer.status_code == 504
    await until(lambda: online.is_in_flight(0), 10)


async def test_a_request_that_crashes_the_engine_is_not_tried_again(online: Online) -> None:
    async with online.http as http:
        for _ in range(3):  # the third time it is not even given to the engine

            async def answered() -> bool:
                answer = await http.post("/chat/completions", json=chat("[[sim:crash]]"))
                if answer.status_code == 503:
                    return False  # the engine is on its way back
                assert answer.status_code == 500
                assert answer.json()["error"]["code"] == "engine_crash"
                assert answer.headers["x-should-retry"] == "false"
                return True

            await until(answered)
        served = await http.post("/chat/completions", json=chat("fine"))
        assert served.status_code == 200
