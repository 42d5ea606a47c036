"""Real vLLM with a real small model: the engine contract, and crashes that leave no orphan."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.engine_contract import EngineContract
from tests.real_engine import READY_SECONDS, leaked_shared_memory, real_engine_settings
from tests.worker_bench import until

from batch_gpu_worker.engines import guardian
from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.engines.vllm import VllmEngine
from vllm_batch.errors import EngineCrashed
from vllm_batch.settings import Settings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return real_engine_settings(tmp_path_factory.mktemp("base"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    vllm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VllmEngine]:
    settings = Settings(home=tmp_path_factory.mktemp("vllm"), **vllm)
    engine = VllmEngine(settings)
    await engine.start()
    failure = asyncio.create_task(engine.wait_failed())
    ready = asyncio.create_task(engine.ready.wait())
    await asyncio.wait({failure, ready}, timeout=READY_SECONDS, return_when="FIRST_COMPLETED")
    if failure.done():
        failure.result()
    assert engine.ready.is_set()
    yield engine
    await engine.stop()
    await asyncio.gather(failure, return_exceptions=True)
    assert engine.pid is None


class TestVllm(EngineContract):
    endpoints = frozenset(EngineContract.endpoints | {"/v1/responses"})

    @pytest.fixture
    def engine(self, running: VllmEngine, vllm: dict[str, Any]) -> Engine:
        type(self).model = Settings(home=Path(), **vllm).model_name
        return running

    async def test_it_knows_the_capital_of_france(self, engine: Engine) -> None:
        answer = await engine.complete("/v1/chat/completions", self.body("/v1/chat/completions"))
        text = msgspec.json.decode(answer.body)["choices"][0]["message"]["content"]
        assert "Paris" in text

    async def test_giving_up_a_call_frees_its_slot(self, engine: VllmEngine) -> None:
        body = self.body("/v1/chat/completions", max_tokens=900, ignore_eos=True)
        calls = [
            asyncio.create_task(engine.complete("/v1/chat/completions", body)) for _ in range(4)
        ]
        await until(lambda: running_requests(engine, 4), 60)
        for call in calls:
            call.cancel()
        await until(lambda: running_requests(engine, 0), 20)

    async def test_an_answer_too_long_for_the_model_is_refused(self, engine: Engine) -> None:
        long = [{"role": "user", "content": "word " * 5000}]
        answer = await engine.complete(
            "/v1/chat/completions", self.body("/v1/chat/completions", messages=long)
        )
        assert answer.status == 400
        assert "error" in msgspec.json.decode(answer.body)

    async def test_a_killed_guardian_is_a_crash_and_leaves_nothing(
        self, engine: VllmEngine
    ) -> None:
        """The last test of this engine. Its children are killed, and it comes back, in a whole
        stack: `test_kills_vllm`."""
        await asyncio.wait_for(engine.ready.wait(), READY_SECONDS)
        before = leaked_shared_memory()
        session = recorded_session(engine)
        assert len(guardian.session_members(session)) >= 3
        body = self.body("/v1/chat/completions", max_tokens=900, ignore_eos=True)
        calls = [
            asyncio.create_task(engine.complete("/v1/chat/completions", body)) for _ in range(3)
        ]
        await until(lambda: running_requests(engine, 3), 60)
        os.kill(session, signal.SIGKILL)
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        assert [type(outcome) for outcome in outcomes] == [EngineCrashed] * 3
        assert not engine.ready.is_set()
        await until(lambda: guardian.session_members(session) == [], 10)
        assert leaked_shared_memory() <= before


def recorded_session(engine: VllmEngine) -> int:
    return int(json.loads(engine.record.read_text())["guardian"])


async def running_requests(engine: VllmEngine, wanted: int) -> bool:
    metrics = (await engine.ask("/metrics")).body.decode()
    values = [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("vllm:num_requests_running")
    ]
    return sum(values) == wanted
