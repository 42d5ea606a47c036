"""A worker whose engine starts again without one of its adapters."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.facts import append
from tests.worker_bench import WorkerBench, chat, line_of, running_agent, stand_in_python, until

from vllm_batch import ids
from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events.model import ModelFailed, ModelRegistered
from vllm_batch.events.worker import WorkerReady
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings
from vllm_batch.worker_control import ModelSpec, Serve

BASE = "simulated-model"


@pytest.fixture
def vllm_settings(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    python = stand_in_python(tmp_path, monkeypatch)
    own = {"engine": "vllm", "model": f"org/{BASE}", "engine_python": python, "lora": True}
    return Settings(**(settings.model_dump(exclude_defaults=True) | own))


async def test_requests_for_a_lost_adapter_are_given_back_and_do_not_fail(
    event_store: JetStreamEventStore, vllm_settings: Settings, tmp_path: Path
) -> None:
    bench = WorkerBench(event_store, vllm_settings, model="tuned")
    folder = tmp_path / "tuned"
    folder.mkdir()
    tuned = ModelSpec(name="tuned", source=str(folder), base=BASE)
    key = ids.model_key("tuned")
    await append(
        event_store,
        ModelRegistered(
            model_key=key, name="tuned", source=str(folder), base=BASE, requested_by="test"
        ),
    )

    async def serves(*models: str) -> bool:
        found = await bench.events(subjects.every(WorkerReady))
        last = found[-1].event if found else None
        return isinstance(last, WorkerReady) and last.models == list(models)

    async def is_reported() -> bool:
        return bool(await bench.events(subjects.every(ModelFailed)))

    async with running_agent(vllm_settings) as running:
        await until(lambda: serves(BASE))
        running.agent.models.want(
            Serve(requested_by="test", base=ModelSpec(name=BASE), adapters=(tuned,), lora=True)
        )
        await until(lambda: serves(BASE, "tuned"))
        slow = line_of("r", chat("x") | {"model": "tuned", "sleep": 600})
        job = await bench.submit([slow])
        await until(lambda: running.agent.admission.in_engine == 1)
        folder.rmdir()
        assert running.engine.pid is not None
        os.kill(running.engine.pid, signal.SIGKILL)
        await until(lambda: serves(BASE))
        await until(is_reported)
    chunk = await bench.chunk(job)
    assert (chunk.status, chunk.segments) == (ChunkStatus.READY, ())
    (failed,) = await bench.events(subjects.every(ModelFailed))
    assert isinstance(failed.event, ModelFailed)
    assert failed.event.reason == "vLLM: tuned is not there"
