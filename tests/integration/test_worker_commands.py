"""Commands over NATS to real workers, and their logs as telemetry."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from nats.aio.msg import Msg
from tests.worker_bench import (
    WorkerBench,
    chat,
    line_of,
    running_agent,
    stand_in_python,
    until,
    worker_process,
)

from batch_gpu_worker.engines.vllm import VllmEngine
from vllm_batch.errors import WorkerUnreachable
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    Event,
    WorkerEngineKilled,
    WorkerEngineRestarted,
    WorkerGpuCleared,
    WorkerLost,
    WorkerReady,
    WorkerRestartRequested,
    WorkerStarted,
    WorkerStopped,
)
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.log_stream import LogLine
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings
from vllm_batch.worker_control import (
    ClearGpu,
    Command,
    Kill,
    Reply,
    Restart,
    Status,
    send,
)

WHO = "ada@gpu-7"


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> WorkerBench:
    return WorkerBench(event_store, settings)


def changed(settings: Settings, **changes: Any) -> Settings:
    return Settings(**(settings.model_dump(exclude_defaults=True) | changes))


@pytest.fixture
def vllm_settings(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    python = stand_in_python(tmp_path, monkeypatch)
    return changed(
        settings, engine="vllm", model="org/simulated-model", engine_python=python,
        worker_name="worker.a",
    )  # fmt: skip


async def ask(bench: WorkerBench, worker: str, command: Command) -> Reply:
    return await send(bench.store.connection.client, worker, command, 60)


async def events_of(bench: WorkerBench, worker_id: WorkerId, *kinds: type[Event]) -> list[Event]:
    found = await bench.events(subjects.aggregate("worker", worker_id))
    return [r.event for r in found if not kinds or isinstance(r.event, kinds)]


async def test_status_is_a_heartbeat_of_this_moment(bench: WorkerBench, settings: Settings) -> None:
    named = changed(settings, worker_name="worker.a")
    async with running_agent(named) as running:
        await until(running.engine.ready.is_set)
        for worker in (running.agent.worker_id, "worker.a"):
            reply = await ask(bench, worker, Status(requested_by=WHO))
            assert reply.ok
            beat = msgspec.convert(reply.data, Heartbeat)
            assert (beat.worker_id, beat.name) == (running.agent.worker_id, "worker.a")
            assert beat.max_num_seqs == 128
            assert beat.rss_bytes > 10_000_000
    with pytest.raises(WorkerUnreachable, match="does not run"):
        await ask(bench, "worker.a", Status(requested_by=WHO))


async def test_what_is_no_command_is_refused(bench: WorkerBench, settings: Settings) -> None:
    async with running_agent(settings) as running:
        client = bench.store.connection.client
        subject = subjects.control(running.agent.worker_id)
        await until(running.engine.ready.is_set)
        for payload in (
            b"",
            b"{}",
            b'{"command":"explode","requested_by":"x"}',
            b'{"command":"kill"}',
        ):
            answer = await client.request(subject, payload, 5)
            assert not msgspec.json.decode(answer.data, type=Reply).ok
        assert running.agent.monitor.restarts == 0


async def test_a_killed_engine_is_started_again_and_its_requests_are_tried_again(
    bench: WorkerBench, vllm_settings: Settings
) -> None:
    url = "/v1/completions"
    async with running_agent(vllm_settings) as running:
        engine = running.engine
        assert isinstance(engine, VllmEngine)
        await until(engine.ready.is_set)
        first = engine.pid
        assert first is not None
        below = [psutil.Process(first), *psutil.Process(first).children(recursive=True)]
        assert len(below) == 3
        assert all(engine.owns(process.pid) for process in below)
        assert not engine.owns(os.getpid())
        body = {"model": "simulated-model", "prompt": "x", "sleep": 3}
        job = await bench.submit([line_of("r", body, url)], endpoint=url)
        await until(lambda: running.agent.admission.in_engine == 1)
        reply = await ask(bench, "worker.a", Kill(requested_by=WHO))
        assert (reply.ok, reply.data) == (True, {"pid": first})
        assert not [process for process in below if engine.owns(process.pid)]
        await bench.completed(job)
        ((failed, line),) = (await bench.results(job)).values()
        assert not failed
        assert line["response"]["body"]["choices"][0]["text"] == str(engine.pid) != str(first)
        worker_id = running.agent.worker_id
        (killed,) = await events_of(bench, worker_id, WorkerEngineKilled)
        assert killed == WorkerEngineKilled(worker_id=worker_id, requested_by=WHO)
        (restarted,) = await events_of(bench, worker_id, WorkerEngineRestarted)
        assert isinstance(restarted, WorkerEngineRestarted)
        assert (restarted.reason, restarted.max_num_seqs) == ("killed", 128)


async def test_clearing_the_gpu_kills_what_the_engine_left_and_nobody_else(
    bench: WorkerBench, vllm_settings: Settings
) -> None:
    async with running_agent(vllm_settings) as running:
        engine = running.engine
        assert isinstance(engine, VllmEngine)
        await until(engine.ready.is_set)
        assert engine.pid is not None
        # One that has left the engine's session and lost its parent: only the mark tells its owner.
        environment = psutil.Process(engine.pid).environ()
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        ours = subprocess.Popen(  # noqa: ASYNC220 - a fork takes no time
            sleeper, env=environment, start_new_session=True
        )
        foreign = subprocess.Popen(sleeper, start_new_session=True)  # noqa: ASYNC220
        try:
            await until(lambda: engine.owns(ours.pid))
            reply = await ask(bench, "worker.a", ClearGpu(requested_by=WHO))
            assert reply.ok
            assert reply.data["killed_pids"] == [ours.pid]
            assert ours.wait(60) == -signal.SIGKILL
            assert foreign.poll() is None
        finally:
            for process in (ours, foreign):
                process.kill()
                process.wait(10)
        await until(engine.ready.is_set)
        (event,) = await events_of(bench, running.agent.worker_id, WorkerGpuCleared)
        assert isinstance(event, WorkerGpuCleared)
        assert (event.requested_by, event.killed_pids) == (WHO, (ours.pid,))


@pytest.mark.parametrize("now", [False, True])
async def test_a_restarted_worker_is_a_new_one_in_the_same_process(
    bench: WorkerBench, settings: Settings, now: bool
) -> None:
    named = changed(settings, worker_name="worker.a", drain_notice_seconds=60.0)

    async def ready(count: int) -> bool:
        return len(await bench.events(subjects.every(WorkerReady))) == count

    async with worker_process(named) as worker:
        await until(lambda: ready(1))
        job = await bench.submit(
            [line_of(f"r{n}", chat(f"[[sim:sleep={1 if n else 4}]] {n}")) for n in range(5)]
        )

        async def all_begun() -> bool:
            status = await ask(bench, "worker.a", Status(requested_by=WHO))
            return msgspec.convert(status.data, Heartbeat).in_flight == 5

        await until(all_begun)
        reply = await ask(bench, "worker.a", Restart(requested_by=WHO, now=now))
        assert reply.ok
        await until(lambda: ready(2))
        starts = [r.event for r in await bench.events(subjects.every(WorkerStarted))]
        assert [start.pid for start in starts if isinstance(start, WorkerStarted)] == [
            worker.pid
        ] * 2
        first, second = (r.source for r in await bench.events(subjects.every(WorkerStarted)))
        assert first != second
        kinds = [type(event) for event in await events_of(bench, WorkerId(first))]
        assert kinds == [WorkerStarted, WorkerReady, WorkerRestartRequested, WorkerStopped]
        done = (await bench.chunk(job)).completed
        assert done < 5 if now else done == 5
        if now:
            await bench.offer(job, 0)
        await bench.completed(job)
        worker.send_signal(signal.SIGTERM)  # the new one hears it
        assert await asyncio.wait_for(worker.wait(), 60) == 0


async def test_a_restart_denies_a_loss_that_was_not_the_last_word(
    bench: WorkerBench, settings: Settings
) -> None:
    async with running_agent(settings) as running:
        worker_id = running.agent.worker_id
        await until(running.engine.ready.is_set)

        async def count(kind: type[Event]) -> int:
            return len(await events_of(bench, worker_id, kind))

        async def is_ready() -> bool:
            return await count(WorkerReady) == 1

        await until(is_ready)
        job = await bench.submit([line_of(f"r{n}", chat("[[sim:sleep=5]]")) for n in range(3)])
        await until(lambda: running.agent.admission.in_flight == 3)
        last = (await bench.events(subjects.aggregate("worker", worker_id)))[-1]
        await bench.store.append(
            WorkerLost(worker_id=worker_id, reason="silent"), expected=last.seq
        )
        await ask(bench, worker_id, Kill(requested_by=WHO))
        await bench.release(job)

        async def ready_again() -> bool:
            return await count(WorkerReady) == 2

        await until(ready_again)


@asynccontextmanager
async def hearing_logs(bench: WorkerBench) -> AsyncIterator[list[LogLine]]:
    heard: list[LogLine] = []

    async def hear(message: Msg) -> None:
        heard.append(msgspec.json.decode(message.data, type=LogLine))

    client = bench.store.connection.client
    subscription = await client.subscribe(subjects.ALL_LOGS, cb=hear)
    yield heard
    await subscription.unsubscribe()


async def test_logs_reach_the_stream_and_the_file_without_secrets(
    bench: WorkerBench, vllm_settings: Settings, tmp_path: Path, capfd: Any
) -> None:
    secret = "s3cr3t-of-the-engine"
    talkative = changed(
        vllm_settings, engine_api_key=secret, log_dir=tmp_path / "logs",
        engine_args=["--token", "sk-0123456789abcdef", "--note", secret],
    )  # fmt: skip
    async with hearing_logs(bench) as heard, worker_process(talkative) as worker:
        await until(lambda: any(line.message == "ready" for line in heard))
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 60) == 0
        await until(lambda: any(line.message == "drained" for line in heard))

        async def stored() -> bool:
            info = await bench.store.js.stream_info("TELEMETRY")
            return info.state.messages >= len(heard)

        await until(stored)
    (start,) = [line for line in heard if line.message == "starting vLLM"]
    assert start.source == "agent"
    assert "[redacted]" in start.fields["command"]
    written = (tmp_path / "logs" / "worker-worker.a.log").read_text()
    printed = capfd.readouterr().err
    everything = written + printed + msgspec.json.encode(heard).decode()
    assert secret not in everything
    assert "sk-0123456789" not in everything
    assert "drained" in written
    in_file = [msgspec.json.decode(line, type=LogLine) for line in written.splitlines()]
    assert [line.message for line in heard if line.message == "ready"] == [
        line.message for line in in_file if line.message == "ready"
    ]
    assert json.loads(printed.splitlines()[0])["service"] == "gpu-worker"
