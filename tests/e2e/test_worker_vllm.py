"""A worker with real vLLM: the batch survives its engine, and no engine survives its worker."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tests.conftest import NatsServer
from tests.engine_contract import USER
from tests.real_engine import READY_SECONDS, leaked_shared_memory, real_engine_settings
from tests.worker_bench import WorkerBench, line_of, until, worker_process

from batch_gpu_worker.engines import guardian
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import WorkerReady
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

pytestmark = pytest.mark.timeout(1800)


async def test_a_batch_survives_its_engine_and_no_engine_survives_its_worker(
    nats_server: NatsServer, tmp_path: Path, event_store: JetStreamEventStore
) -> None:
    settings = Settings(
        home=tmp_path / "home",
        nats_url=nats_server.url,
        engine_max_num_seqs=8,
        **real_engine_settings(tmp_path),
    )
    model = settings.model_name
    before = leaked_shared_memory()
    bench = WorkerBench(event_store, settings, model=model)
    body = {"model": model, "messages": USER, "max_tokens": 12, "temperature": 0}
    long = body | {"max_tokens": 200, "ignore_eos": True}
    record = settings.home / "run" / f"engine-{settings.worker_name}.json"
    async with worker_process(settings) as worker:
        job = await bench.submit(
            [line_of(f"r{n}", long if n % 4 else body) for n in range(24)], chunk_requests=8
        )

        async def is_ready() -> bool:
            return bool(await bench.events(subjects.every(WorkerReady)))

        await until(is_ready, READY_SECONDS)

        async def has_begun() -> bool:
            return sum(chunk.completed for chunk in (await bench.chunks(job)).values()) > 0

        await until(has_begun, 120)
        session = json.loads(record.read_text())["guardian"]
        core = next(
            p
            for p in guardian.session_members(session)
            if "EngineCore" in Path(f"/proc/{p}/cmdline").read_text()
        )
        os.kill(core, signal.SIGKILL)
        await bench.completed(job, READY_SECONDS)
        results = await bench.results(job)
        assert len(results) == 24
        assert not any(failed for failed, _ in results.values())
        choice = results["r0"][1]["response"]["body"]["choices"][0]
        assert "Paris" in choice["message"]["content"]

        session = json.loads(record.read_text())["guardian"]
        assert len(guardian.session_members(session)) >= 3
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        await until(lambda: guardian.session_members(session) == [], 10)
        await until(lambda: leaked_shared_memory() <= before, 10)
