"""Real vLLM that hangs: its health endpoint says that all is well, and the worker knows better."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest
from tests.conftest import NatsServer
from tests.engine_contract import USER
from tests.real_engine import READY_SECONDS, real_engine_settings
from tests.worker_bench import WorkerBench, line_of, until, worker_process

from batch_gpu_worker.engines import guardian
from batch_gpu_worker.engines.http import HttpCaller
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import WorkerEngineRestarted, WorkerReady
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings
from vllm_batch.worker_control import Kill, Status, send

pytestmark = pytest.mark.timeout(1800)


def engine_core(record: Path) -> int:
    session = json.loads(record.read_text())["guardian"]
    return next(
        pid
        for pid in guardian.session_members(session)
        if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()
    )


async def test_a_frozen_core_is_replaced_and_its_requests_are_answered(
    nats_server: NatsServer, tmp_path: Path, event_store: JetStreamEventStore
) -> None:
    settings = Settings(
        home=tmp_path / "home", nats_url=nats_server.url, worker_name="frozen",
        engine_max_num_seqs=8, engine_frozen_seconds=15.0, engine_canary_seconds=10.0,
        **real_engine_settings(tmp_path),
    )  # fmt: skip
    model = settings.model_name
    bench = WorkerBench(event_store, settings, model=model)
    client = event_store.connection.client
    body = {"model": model, "messages": USER, "max_tokens": 150, "ignore_eos": True}
    record = settings.home / "run" / "engine-frozen.json"

    async def restarts() -> list[str]:
        found = await bench.events(subjects.every(WorkerEngineRestarted))
        return [r.event.reason for r in found if isinstance(r.event, WorkerEngineRestarted)]

    async with worker_process(settings) as worker:
        job = await bench.submit([line_of(f"r{n}", body) for n in range(24)], chunk_requests=8)

        async def is_ready() -> bool:
            return bool(await bench.events(subjects.every(WorkerReady)))

        await until(is_ready, READY_SECONDS)

        async def has_begun() -> bool:
            return sum(chunk.completed for chunk in (await bench.chunks(job)).values()) > 0

        await until(has_begun, 300)
        assert await restarts() == []  # slow is not frozen
        core = engine_core(record)
        os.kill(core, signal.SIGSTOP)
        caller = HttpCaller("http://engine/v1", uds=str(record.with_suffix(".sock")))
        assert (await caller.get("http://engine/health")).status == 200
        await caller.close()

        async def is_replaced() -> bool:
            return await restarts() == ["frozen"]

        await until(is_replaced, 180)
        assert guardian.process_fields(core) is None or guardian.process_fields(core)[0] == "Z"  # type: ignore[index]
        await bench.completed(job, READY_SECONDS)
        results = await bench.results(job)
        assert len(results) == 24
        assert not any(failed for failed, _ in results.values())
        assert {chunk.epoch for chunk in (await bench.chunks(job)).values()} == {1}

        reply = await send(client, "frozen", Status(requested_by="test"), 10)
        status = msgspec.convert(reply.data, Heartbeat)
        assert (status.engine_restarts, status.engine_progress_age_seconds) == (1, 0)
        assert status.engine_rss_bytes > 200_000_000
        session = json.loads(record.read_text())["guardian"]
        assert (await send(client, "frozen", Kill(requested_by="test"), 30)).ok
        assert guardian.session_members(session) == []
        assert await restarts() == ["frozen", "killed"]
        worker.send_signal(signal.SIGTERM)
        assert await worker.wait() == 0
