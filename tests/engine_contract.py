"""The contract of an engine adapter: subclasses give ``engine`` and a ``slow_request``."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import msgspec
import pytest

from batch_gpu_worker.answers import error_of, usage_of
from batch_gpu_worker.engines.base import ENDPOINTS, Engine

USER = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER, "max_tokens": 16, "temperature": 0},
    "/v1/completions": {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0},
    "/v1/responses": {"input": "Say hello.", "max_output_tokens": 8},
    "/v1/embeddings": {"input": ["one", "two"]},
}


class EngineContract:
    """What the worker relies on."""

    model: ClassVar[str]
    endpoints: ClassVar[frozenset[str]] = frozenset({"/v1/chat/completions", "/v1/completions"})
    refused: ClassVar[dict[str, Any]] = {"messages": []}

    @pytest.fixture
    def slow_request(self) -> dict[str, Any]:
        return {"messages": USER, "max_tokens": 900, "ignore_eos": True}

    def body(self, endpoint: str, **changes: Any) -> bytes:
        return msgspec.json.encode({"model": self.model} | REQUESTS[endpoint] | changes)

    async def test_it_names_its_models(self, engine: Engine) -> None:
        assert self.model in await engine.models()

    async def test_what_it_has_it_answers_with_usage(self, engine: Engine) -> None:
        for endpoint in self.endpoints:
            answer = await engine.complete(endpoint, self.body(endpoint))
            assert answer.status == 200, answer.body
            usage = usage_of(answer.body)
            assert usage.input_tokens > 0
            assert endpoint == "/v1/embeddings" or usage.output_tokens > 0

    async def test_what_it_has_not_it_says_clearly(self, engine: Engine) -> None:
        wanted = {*ENDPOINTS, "/v1/images/generations", "/v1/moderations", "/v1/videos"}
        for endpoint in sorted(wanted - self.endpoints):
            answer = await engine.complete(endpoint, b"{}")
            assert answer.status == 404
            error = msgspec.json.decode(answer.body)["error"]
            assert endpoint in error["message"]
            assert error["code"] == "unsupported_endpoint"

    async def test_a_refusal_is_an_answer(self, engine: Engine) -> None:
        body = self.body("/v1/chat/completions", **self.refused)
        answer = await engine.complete("/v1/chat/completions", body)
        assert answer.status == 400
        assert b"error" in error_of(answer.status, answer.body)

    async def test_many_at_once_are_all_answered(self, engine: Engine) -> None:
        body = self.body("/v1/completions")
        answers = await asyncio.gather(
            *(engine.complete("/v1/completions", body) for _ in range(32))
        )
        assert {answer.status for answer in answers} == {200}

    async def test_a_call_can_be_given_up(
        self, engine: Engine, slow_request: dict[str, Any]
    ) -> None:
        body = self.body("/v1/chat/completions", **slow_request)
        call = asyncio.create_task(engine.complete("/v1/chat/completions", body))
        done, _ = await asyncio.wait({call}, timeout=0.2)
        assert not done
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        again = await engine.complete("/v1/completions", self.body("/v1/completions"))
        assert again.status == 200
