"""A worker and its engine in trouble: frozen, poisoned, out of memory, too large."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.worker_bench import (
    RunningAgent,
    WorkerBench,
    chat,
    line_of,
    running_agent,
    stand_in_python,
    until,
)

from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import WorkerEngineRestarted, WorkerStopped
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

FROZEN_SECONDS = 0.3


@pytest.fixture(autouse=True)
def _quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch_gpu_worker.engines.simulated.RESTART_SECONDS", 0.02)


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> WorkerBench:
    return WorkerBench(event_store, settings)


def changed(settings: Settings, **changes: Any) -> Settings:
    return Settings(**(settings.model_dump(exclude_defaults=True) | changes))


async def restarts(bench: WorkerBench, running: RunningAgent) -> list[WorkerEngineRestarted]:
    """Return the recorded restarts of the engine, when all of them are."""
    subject = subjects.aggregate("worker", running.agent.worker_id)

    async def found() -> list[WorkerEngineRestarted]:
        events = [recorded.event for recorded in await bench.events(subject)]
        return [event for event in events if isinstance(event, WorkerEngineRestarted)]

    async def all_are_recorded() -> bool:
        return len(await found()) == running.agent.monitor.restarts

    await until(all_are_recorded)
    return await found()


async def errors(bench: WorkerBench, job: JobId) -> dict[str, str]:
    """Return the error codes of those that failed; each custom_id is there once."""
    results = await bench.results(job)
    return {name: line["error"]["code"] for name, (failed, line) in results.items() if failed}


def lines(count: int, marks: dict[int, str] | None = None) -> list[bytes]:
    return [line_of(f"r{n}", chat(f"{(marks or {}).get(n, '')} {n}")) for n in range(count)]


async def test_a_frozen_engine_is_replaced_and_leases_are_kept(
    bench: WorkerBench, settings: Settings
) -> None:
    quick = changed(
        settings, engine_frozen_seconds=FROZEN_SECONDS, engine_canary_seconds=0.1,
        simulated_latency_seconds=0.01,
    )  # fmt: skip
    async with running_agent(quick) as running:
        job = await bench.submit(lines(100, {40: "[[sim:hang]]"}))
        await bench.completed(job)
        assert await errors(bench, job) == {"r40": "engine_crash"}
        assert {chunk.epoch for chunk in (await bench.chunks(job)).values()} == {1}
        found = await restarts(bench, running)
        assert [event.reason for event in found] == ["frozen"] * 3
        assert running.agent.monitor.progress_age_seconds == 0
        again = await bench.submit(lines(20))
        await bench.completed(again)


async def test_a_slow_request_is_no_frozen_engine(bench: WorkerBench, settings: Settings) -> None:
    quick = changed(settings, engine_frozen_seconds=FROZEN_SECONDS, engine_canary_seconds=0.1)
    ages = []
    async with running_agent(quick) as running:
        job = await bench.submit([line_of("slow", chat(f"[[sim:sleep={5 * FROZEN_SECONDS}]]"))])

        async def done() -> bool:
            ages.append(running.agent.monitor.progress_age_seconds)
            return (await bench.chunk(job)).status == "completed"

        await until(done)
        assert running.agent.monitor.restarts == 0
        assert max(ages) > FROZEN_SECONDS / 2
    assert await errors(bench, job) == {}


@pytest.mark.parametrize(
    ("poisoned", "restarts_max"), [({617}, 12), ({3, 998}, 24)], ids=["one", "two"]
)
async def test_poison_is_found_and_all_others_succeed(
    bench: WorkerBench, settings: Settings, poisoned: set[int], restarts_max: int
) -> None:
    slow = changed(settings, simulated_latency_seconds=0.01)
    async with running_agent(slow) as running:
        job = await bench.submit(
            lines(1000, dict.fromkeys(poisoned, "[[sim:crash]]")), chunk_requests=256
        )
        await bench.completed(job)
        found = await restarts(bench, running)
        assert await errors(bench, job) == {f"r{n}": "engine_crash" for n in poisoned}
        assert len(await bench.results(job)) == 1000
        assert {event.reason for event in found} == {"crashed"}
        assert len(found) <= restarts_max
        # What was cleared is not looked at again, and nothing waits for a turn that never comes.
        before = running.agent.monitor.restarts
        again = await bench.submit(lines(200))
        await bench.completed(again)
        assert running.agent.monitor.restarts == before


async def test_the_end_of_a_job_ends_its_quarantine(bench: WorkerBench, settings: Settings) -> None:
    slow = changed(settings, simulated_latency_seconds=0.05)
    async with running_agent(slow) as running:
        job = await bench.submit(lines(64, {9: "[[sim:crash]]", 11: "[[sim:hang]]"}))
        await until(lambda: running.agent.monitor.restarts >= 3)
        await bench.cancel(job)
        other = await bench.submit(lines(64))
        await bench.completed(other)
        assert await errors(bench, other) == {}


async def test_an_engine_that_answers_nothing_any_more_is_given_up(
    bench: WorkerBench, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_gpu_worker.engine_monitor.DEATHS_IN_VAIN_MAX", 8)
    async with running_agent(settings) as running:
        fine = await bench.submit(lines(20))
        await bench.completed(fine)
        job = await bench.submit(lines(40, dict.fromkeys(range(40), "[[sim:crash]]")))
        assert await asyncio.wait_for(asyncio.shield(running.task), 120) == 1
        assert running.agent.monitor.restarts >= 8
        chunk = await bench.chunk(job)
        assert chunk.status == "ready"
        assert chunk.failed < 10  # what was convicted stays convicted
        stops = [r.event for r in await bench.events(subjects.every(WorkerStopped))]
        assert [stop.reason for stop in stops if isinstance(stop, WorkerStopped)] == [
            "engine_failed"
        ]


async def test_out_of_memory_halves_what_runs_at_once(
    bench: WorkerBench, settings: Settings
) -> None:
    async with running_agent(changed(settings, simulated_latency_seconds=0.01)) as running:
        job = await bench.submit(lines(300, {50: "[[sim:oom=16]]", 51: "[[sim:oom=30]]"}))
        await bench.completed(job)
        found = await restarts(bench, running)
        assert await errors(bench, job) == {}
        assert {event.reason for event in found} == {"out_of_memory"}
        assert [event.max_num_seqs for event in found] == [64, 32, 16]
        assert running.agent.admission.in_flight_max == 32


async def test_out_of_memory_alone_is_the_requests_own_doing(
    bench: WorkerBench, settings: Settings
) -> None:
    async with running_agent(changed(settings, engine_max_num_seqs=4)) as running:
        job = await bench.submit(lines(30, {5: "[[sim:oom=0]]"}))
        await bench.completed(job)
        found = await restarts(bench, running)
        assert await errors(bench, job) == {"r5": "engine_crash"}
        assert [event.max_num_seqs for event in found][:3] == [2, 1, 1]


async def test_an_engine_that_is_too_large_is_replaced_between_requests(
    bench: WorkerBench, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = stand_in_python(tmp_path, monkeypatch)
    # Everything is too large: it is replaced whenever it has nothing to do.
    small = changed(
        settings, engine="vllm", model="org/simulated-model", engine_python=python,
        engine_rss_bytes_max=1, engine_frozen_seconds=1.0,
    )  # fmt: skip
    async with running_agent(small) as running:
        await until(lambda: running.agent.monitor.restarts >= 1)
        body = {"model": "simulated-model", "prompt": "x", "sleep": 0.5}
        url = "/v1/completions"
        requests = [line_of(f"r{n}", body, url) for n in range(8)]
        job = await bench.submit(requests, endpoint=url)
        await bench.completed(job)
        before = running.agent.monitor.restarts
        await until(lambda: running.agent.monitor.restarts > before)
        found = await restarts(bench, running)
    assert {event.reason for event in found} == {"memory_limit"}
    answers = [line["response"]["body"] for _, line in (await bench.results(job)).values()]
    pids = {answer["choices"][0]["text"] for answer in answers}
    assert len(pids) == 1, "a request was interrupted"
    assert await errors(bench, job) == {}
