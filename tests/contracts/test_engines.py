"""What every engine does, whichever it is. The same suite runs over real vLLM in tests/e2e."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from aiohttp import web
from tests.engine_contract import EngineContract
from tests.worker_bench import until

from batch_gpu_worker.engines import open_engine
from batch_gpu_worker.engines.base import Engine
from vllm_batch.errors import EngineDown, EngineFailed, EngineUnavailable
from vllm_batch.settings import Settings

MODEL = "contract-model"


class SmallServer:
    """A real HTTP server that speaks enough of OpenAI's API; a test may stop and restart it."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.keys: list[str | None] = []
        self.aborted = asyncio.Event()
        self.entered = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_post("/v1/completions", self._completion)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        text = await request.text()
        body: dict[str, Any] = msgspec.json.decode(text)
        if not body.get("messages"):
            error = {"message": "no messages", "type": "invalid_request_error", "code": 400}
            return web.json_response({"error": error}, status=400)
        if body.get("user") == "too fast":
            return web.json_response({}, status=429, headers={"Retry-After": "7"})
        if body.get("max_tokens", 0) > 500:
            self.entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.aborted.set()
        message = {"role": "assistant", "content": "Paris"}
        return self._answer("chat.completion", {"index": 0, "message": message})

    async def _completion(self, request: web.Request) -> web.Response:
        return self._answer("text_completion", {"index": 0, "text": "Paris"})

    @staticmethod
    def _answer(kind: str, choice: dict[str, Any]) -> web.Response:
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        body = {"id": "x", "object": kind, "model": MODEL, "choices": [choice], "usage": usage}
        return web.json_response(body, headers={"x-request-id": "req-from-the-server"})


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Engine]:
    engine = open_engine(settings)
    await engine.start()
    try:
        await asyncio.wait_for(engine.ready.wait(), 120)
        yield engine
    finally:
        await engine.stop()


class TestSimulated(EngineContract):
    model = MODEL
    endpoints = frozenset(EngineContract.endpoints | {"/v1/embeddings", "/v1/responses"})
    refused: ClassVar[dict[str, Any]] = {"metadata": {"test": "[[sim:400]]"}}

    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[Engine]:
        settings = Settings(
            home=tmp_path, model_name=MODEL, simulated_output_tokens=3, simulated_seed=5
        )
        async with started(settings) as engine:
            yield engine

    @pytest.fixture
    def slow_request(self) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "[[sim:hang]]"}]}


class TestOpenAI(EngineContract):
    model = MODEL

    @pytest.fixture
    async def server(self) -> AsyncIterator[SmallServer]:
        server = SmallServer()
        await server.start()
        yield server
        await server.stop()

    @pytest.fixture
    async def engine(self, tmp_path: Path, server: SmallServer) -> AsyncIterator[Engine]:
        settings = Settings(
            home=tmp_path, engine="openai", engine_url=server.url, engine_api_key="sk-1"
        )
        async with started(settings) as engine:
            yield engine

    async def test_the_key_goes_with_each_call(self, engine: Engine, server: SmallServer) -> None:
        assert set(server.keys) == {"Bearer sk-1"}

    async def test_the_servers_request_id_is_kept(self, engine: Engine) -> None:
        answer = await engine.complete("/v1/completions", b'{"prompt":"x"}')
        assert answer.request_id == "req-from-the-server"

    async def test_the_servers_pause_is_read(self, engine: Engine) -> None:
        body = msgspec.json.encode({"messages": [{}], "user": "too fast"})
        answer = await engine.complete("/v1/chat/completions", body)
        assert (answer.status, answer.retry_seconds) == (429, 7.0)
        async with engine.stream("/v1/chat/completions", body) as begun:
            assert (begun.status, begun.retry_seconds) == (429, 7.0)

    async def test_giving_up_a_call_ends_it_on_the_server(
        self, engine: Engine, server: SmallServer
    ) -> None:
        body = msgspec.json.encode({"messages": [{}], "max_tokens": 900})
        call = asyncio.create_task(engine.complete("/v1/chat/completions", body))
        await asyncio.wait_for(server.entered.wait(), 120)
        call.cancel()
        await asyncio.wait_for(server.aborted.wait(), 120)
        with pytest.raises(asyncio.CancelledError):
            await call

    async def test_a_server_that_goes_is_waited_for(
        self, engine: Engine, server: SmallServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("batch_gpu_worker.engines.openai.PROBE_PAUSE_SECONDS", 0.02)
        slow = msgspec.json.encode({"messages": [{}], "max_tokens": 900})
        call = asyncio.create_task(engine.complete("/v1/chat/completions", slow))
        await asyncio.wait_for(server.entered.wait(), 120)
        await server.stop()
        with pytest.raises(EngineUnavailable) as held:
            await call
        assert not isinstance(held.value, EngineDown)
        with pytest.raises(EngineDown):
            await engine.complete("/v1/completions", b'{"prompt":"x"}')
        assert not engine.ready.is_set()
        await server.start()
        await asyncio.wait_for(engine.ready.wait(), 120)
        assert (await engine.complete("/v1/completions", b'{"prompt":"x"}')).status == 200


async def test_openai_without_a_url_says_what_is_missing(tmp_path: Path) -> None:
    engine = open_engine(Settings(home=tmp_path, engine="openai"))
    await engine.start()
    with pytest.raises(EngineFailed, match="engine_url"):
        await engine.wait_failed()
    await engine.stop()


async def test_vllm_without_a_python_says_what_is_missing(tmp_path: Path) -> None:
    engine = open_engine(Settings(home=tmp_path, engine="vllm"))
    await engine.start()
    with pytest.raises(EngineFailed, match="engine_python"):
        await asyncio.wait_for(engine.wait_failed(), 120)
    await engine.stop()


async def test_a_named_model_hides_what_else_the_server_has(tmp_path: Path) -> None:
    server = SmallServer()
    await server.start()
    settings = Settings(
        home=tmp_path, engine="openai", engine_url=server.url, model_name="only-this"
    )
    async with started(settings) as engine:
        assert await engine.models() == ["only-this"]
    await server.stop()


def chat(text: str) -> bytes:
    return msgspec.json.encode({"messages": [{"role": "user", "content": text}]})


async def test_the_simulated_engine_misbehaves_on_demand(tmp_path: Path) -> None:
    async with started(Settings(home=tmp_path)) as engine:
        for status in (400, 429, 500, 503):
            answer = await engine.complete("/v1/chat/completions", chat(f"[[sim:{status}]]"))
            assert answer.status == status
            assert msgspec.json.decode(answer.body)["error"]["code"] == f"simulated_{status}"
        loop = asyncio.get_running_loop()
        before = loop.time()
        await engine.complete("/v1/chat/completions", chat("[[sim:sleep=0.05]]"))
        assert loop.time() - before >= 0.05
        held = asyncio.create_task(engine.complete("/v1/chat/completions", chat("[[sim:hang]]")))
        crash = asyncio.create_task(engine.complete("/v1/chat/completions", chat("[[sim:crash]]")))
        results = await asyncio.gather(held, crash, return_exceptions=True)
        assert [getattr(result, "code", "") for result in results] == ["engine_crash"] * 2
        with pytest.raises(EngineDown):
            await engine.complete("/v1/chat/completions", chat("hello"))
        await asyncio.wait_for(engine.ready.wait(), 120)
        assert (await engine.complete("/v1/chat/completions", chat("hello"))).status == 200


async def test_the_simulated_engine_says_so_and_repeats_itself(tmp_path: Path) -> None:
    async def answers(seed: int) -> list[str]:
        async with started(Settings(home=tmp_path, simulated_seed=seed)) as engine:
            bodies = [
                (await engine.complete("/v1/chat/completions", chat(text))).body
                for text in ("a", "b")
            ]
        decoded = [msgspec.json.decode(body) for body in bodies]
        assert {one["system_fingerprint"] for one in decoded} == {"simulated"}
        return [one["choices"][0]["message"]["content"] for one in decoded]

    first = await answers(1)
    assert len(set(first)) == 2
    assert all(text.startswith("simulated answer ") for text in first)
    assert await answers(1) == first
    assert await answers(2) != first


async def test_the_simulated_engine_fails_as_often_as_it_is_told(tmp_path: Path) -> None:
    async with started(Settings(home=tmp_path, simulated_error_rate=0.3)) as engine:
        statuses = [
            (await engine.complete("/v1/completions", b'{"prompt":"%d"}' % n)).status
            for n in range(1000)
        ]
    assert set(statuses) == {200, 503}
    assert 230 < statuses.count(503) < 370


async def test_the_simulated_engine_keeps_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with started(Settings(home=tmp_path, simulated_journal=journal)) as engine:
        answer = await engine.complete("/v1/completions", b'{"prompt":"a"}')
        await engine.complete("/v1/completions", b'{"prompt":"a"}')
        await engine.complete("/v1/completions", b'{"prompt":"b"}')
    lines = journal.read_text().split()
    assert len(lines) == 3
    assert lines[0] == lines[1] != lines[2]
    assert lines[0] in msgspec.json.decode(answer.body)["choices"][0]["text"]


@pytest.mark.parametrize(
    ("given", "count"),
    [('"one"', 1), ('["one","two"]', 2), ("[1,2,3]", 1), ("[[1],[2]]", 2), ("[]", 0)],
)
async def test_simulated_embeddings_are_as_many_as_the_inputs(
    tmp_path: Path, given: str, count: int
) -> None:
    async with started(Settings(home=tmp_path)) as engine:
        answer = await engine.complete("/v1/embeddings", b'{"input":%b}' % given.encode())
    body = msgspec.json.decode(answer.body)
    assert [vector["index"] for vector in body["data"]] == list(range(count))
    assert body["usage"]["total_tokens"] > 0


async def test_a_stopped_engine_lets_its_callers_go(tmp_path: Path) -> None:
    engine = open_engine(Settings(home=tmp_path))
    await engine.start()
    held = asyncio.create_task(engine.complete("/v1/completions", chat("[[sim:hang]]")))
    await until(lambda: not held.done())
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(held, 120)
    assert not engine.ready.is_set()
