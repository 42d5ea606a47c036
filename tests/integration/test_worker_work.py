"""A worker over a real event log and blob store: from hints to results."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from tests.worker_bench import (
    WorkerBench,
    chat,
    line_of,
    running_agent,
    until,
)

from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    ChunkCompleted,
    ChunkReleased,
    Effort,
    JobWindowClosed,
    Segment,
    Usage,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorkerStopped,
)
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.messaging import subjects
from vllm_batch.segments import Result, encode_segment
from vllm_batch.settings import Settings


def changed(settings: Settings, **changes: Any) -> Settings:
    return Settings(**(settings.model_dump(exclude_defaults=True) | changes))


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> WorkerBench:
    return WorkerBench(event_store, settings)


async def test_every_request_has_one_result_and_usage_adds_up(
    bench: WorkerBench, settings: Settings
) -> None:
    lines = [line_of(f"r{n}", chat(f"question {n}")) for n in range(500)]
    lines[7] = line_of("r7", chat("[[sim:400]]"))
    lines[8] = b"  \r\n\n" + lines[8].replace(b"\n", b"\r\n")  # blank lines and CRLF
    async with running_agent(settings) as running:
        job = await bench.submit(lines)
        await bench.completed(job)
        await until(lambda: len(running.agent.holdings) == 0)
    assert await bench.recorded(job) == {(n // 64, n % 64): 1 for n in range(500)}
    results = await bench.results(job)
    assert set(results) == {f"r{n}" for n in range(500)}
    assert [name for name, (failed, _) in results.items() if failed] == ["r7"]
    bodies = [line["response"]["body"] for failed, line in results.values() if not failed]
    chunks = (await bench.chunks(job)).values()
    used = sum((chunk.usage for chunk in chunks), Usage())
    assert used.input_tokens == sum(body["usage"]["prompt_tokens"] for body in bodies)
    assert used.output_tokens == sum(body["usage"]["completion_tokens"] for body in bodies)
    assert sum(chunk.failed for chunk in chunks) == 1
    assert {chunk.epoch for chunk in chunks} == {1}


async def test_what_jobs_took_adds_up_to_the_time_in_which_the_engine_had_work(
    bench: WorkerBench, settings: Settings
) -> None:
    """Two jobs at once, failed requests and tries too: a second of the engine is paid for once."""
    lines = [line_of(f"r{n}", chat(f"[[sim:sleep=0.2]] {n}")) for n in range(40)]
    lines[5] = line_of("r5", chat("[[sim:400]]"))
    few = changed(settings, engine_max_num_seqs=8, in_flight_factor=1)
    async with running_agent(few):
        began = time.monotonic()
        jobs = [await bench.submit(lines, chunk_requests=10) for _ in range(2)]
        for job in jobs:
            await bench.completed(job)
        passed = time.monotonic() - began
    took = [
        sum((chunk.effort for chunk in (await bench.chunks(job)).values()), Effort())
        for job in jobs
    ]
    total = took[0].engine_seconds + took[1].engine_seconds
    assert 80 * 0.2 / 8 * 0.9 < total <= passed
    assert min(one.engine_seconds for one in took) > total / 4
    assert took[0].gpu_seconds == 0  # the simulated engine uses none


async def test_what_a_cancelled_job_took_is_on_record_too(
    bench: WorkerBench, settings: Settings
) -> None:
    async with running_agent(settings) as running:
        lines = [line_of(f"r{n}", chat("[[sim:sleep=60]]")) for n in range(3)]
        job = await bench.submit(lines)
        await until(lambda: running.agent.admission.in_engine == 3)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.5)
        await bench.cancel(job)
        await until(lambda: len(running.agent.holdings) == 0)
    chunk = await bench.chunk(job)
    assert chunk.status is ChunkStatus.READY
    assert 0.5 <= chunk.effort.engine_seconds < 60


async def test_a_hint_that_comes_twice_is_worked_on_once(
    bench: WorkerBench, settings: Settings
) -> None:
    journal = settings.home.parent / "journal"
    job = await bench.plan([line_of(f"r{n}", chat(f"[[sim:sleep=0.1]] {n}")) for n in range(50)])
    await bench.offer(job, 0, 0, 0, 0)
    async with running_agent(changed(settings, simulated_journal=journal)):
        await bench.completed(job)
    assert len(journal.read_text().splitlines()) == 50
    assert len(await bench.results(job)) == 50


async def test_a_small_job_gets_in_beside_a_large_one(
    bench: WorkerBench, settings: Settings
) -> None:
    slow = changed(settings, simulated_latency_seconds=0.05, engine_max_num_seqs=8)
    large = [line_of(f"l{n}", chat(f"large {n}")) for n in range(2000)]
    async with running_agent(slow) as running:
        big = await bench.submit(large, chunk_requests=100)
        await until(lambda: running.agent.admission.answered > 20)
        small = await bench.submit([line_of(f"s{n}", chat("small")) for n in range(10)])
        # The hints of the large job are all offered already: the small one is behind them, but for
        # those that are held it takes turns.
        assert len(running.agent.holdings) <= 3  # few chunks are held ahead
        await until(lambda: running.agent.holdings.of_job(small) != [], 60)
        before = running.agent.admission.answered
        await bench.completed(small)
        assert running.agent.admission.answered - before < 200
        await bench.completed(big)
    ends = {
        recorded.event.aggregate_id(): recorded.seq
        for recorded in await bench.events(subjects.every(ChunkCompleted))
    }
    assert ends[small, "0"] < ends[big, "19"]


async def test_what_an_earlier_owner_recorded_is_not_computed_again(
    bench: WorkerBench, settings: Settings
) -> None:
    journal = settings.home.parent / "journal"
    job = await bench.plan([line_of(f"r{n}", chat(f"q {n}")) for n in range(20)])
    rows = [Result(n, False, b'{"custom_id":"r%d"}\n' % n) for n in (0, 3, 4, 19)]
    await record_as_another(bench, job, rows)
    async with running_agent(changed(settings, simulated_journal=journal)):
        await bench.offer(job, 0)
        await bench.completed(job)
    assert len(journal.read_text().splitlines()) == 16
    assert await bench.recorded(job) == {(0, n): 1 for n in range(20)}
    assert (await bench.chunk(job)).epoch == 2


async def record_as_another(bench: WorkerBench, job: Any, rows: list[Result]) -> None:
    """Lease, record and be released, as a worker that died."""
    from batch_gpu_worker.lease import Lease
    from vllm_batch.ids import WorkerId

    lease = await Lease.take(bench.store, job, 0, worker_id=WorkerId("worker_dead"))
    data = encode_segment(rows)
    await bench.blobs.put(f"segments/{job}/0/1-1", data)
    segment = Segment(blob=f"segments/{job}/0/1-1", bytes=len(data), completed=len(rows), failed=0)
    await lease.record(segment, Usage(len(rows)))
    await bench.release(job)


async def test_a_chunk_of_which_only_the_end_is_missing_is_ended(
    bench: WorkerBench, settings: Settings
) -> None:
    job = await bench.plan([line_of("r0", chat("q")), line_of("r1", chat("q"))])
    rows = [Result(n, False, b'{"custom_id":"r%d"}\n' % n) for n in (0, 1)]
    await record_as_another(bench, job, rows)
    async with running_agent(settings):
        await bench.offer(job, 0)
        await bench.completed(job)
    chunk = await bench.chunk(job)
    assert (chunk.completed, len(chunk.segments)) == (2, 1)


@pytest.mark.parametrize("kind", ["cancelled", "expired"])
async def test_the_end_of_a_job_stops_its_requests_at_once(
    bench: WorkerBench, settings: Settings, kind: str
) -> None:
    lines = [line_of("quick", chat("hello"))]
    lines += [line_of(f"slow{n}", chat("[[sim:hang]]")) for n in range(30)]
    async with running_agent(changed(settings, flush_seconds=30.0)) as running:
        job = await bench.submit(lines)
        other = await bench.submit([line_of("o", chat("[[sim:sleep=2]]"))])
        await until(lambda: running.agent.admission.answered == 1)
        await until(lambda: len(running.agent.holdings) == 2)
        if kind == "cancelled":
            await bench.cancel(job)
        else:
            await bench.store.append(JobWindowClosed(job_id=job), expected=0)

        async def released() -> bool:
            return (await bench.chunk(job)).status is ChunkStatus.READY

        await until(released)
        await until(lambda: running.agent.admission.in_flight <= 1)
        await bench.completed(other)
        # Offered again by mistake, it is given back without being worked on.
        await bench.offer(job, 0)
        await until(lambda: has_epoch(bench, job, 2))
        await until(released)
    assert set(await bench.results(job)) == {"quick"}
    events = [recorded.event for recorded in await bench.events(subjects.chunk(job, 0))]
    assert {e.reason for e in events if isinstance(e, ChunkReleased)} == {kind}


async def has_epoch(bench: WorkerBench, job: Any, epoch: int) -> bool:
    return (await bench.chunk(job)).epoch >= epoch


async def test_every_way_a_request_can_fail_has_its_line(
    bench: WorkerBench, settings: Settings
) -> None:
    quick = changed(
        settings, retry_backoff_seconds=0.01, request_attempts_max=2, request_timeout_seconds=0.5
    )
    lines = [
        line_of("fine", chat("hello", stream=True)),
        line_of("refused", chat("[[sim:422]]")),
        line_of("broken", chat("[[sim:500]]")),
        line_of("hangs", chat("[[sim:hang]]")),
        line_of("deep", b'{"model":"m","x":' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
    ]
    async with running_agent(quick):
        job = await bench.submit(lines)
        await bench.completed(job)
        wrong = await bench.submit([line_of("w", chat("x"))], endpoint="/v1/images/generations")
        await bench.completed(wrong)
        killer = await bench.submit([line_of("k", chat("[[sim:crash]]"))])
        await bench.completed(killer)
    results = await bench.results(job)
    codes = {
        name: (line["response"] or {}).get("status_code") or line["error"]["code"]
        for name, (_, line) in results.items()
    }
    deep = codes.pop("deep")
    assert codes == {"fine": 200, "refused": 422, "broken": 500, "hangs": "request_timeout"}
    assert deep == "invalid_json_line"  # deeper than this process allows; a worker allows more
    unsupported = (await bench.results(wrong))["w"][1]["response"]
    assert unsupported["status_code"] == 404
    assert "/v1/images/generations" in unsupported["body"]["error"]["message"]
    assert (await bench.results(killer))["k"][1]["error"]["code"] == "engine_crash"


async def test_a_crash_of_the_engine_costs_nothing_but_time(
    bench: WorkerBench, settings: Settings
) -> None:
    slow = changed(settings, simulated_latency_seconds=0.05, engine_max_num_seqs=16)
    async with running_agent(slow) as running:
        job = await bench.submit([line_of(f"r{n}", chat(f"q {n}")) for n in range(300)])
        for answered in (50, 120):
            await until(lambda least=answered: running.agent.admission.answered > least)
            running.engine.crash()  # type: ignore[attr-defined]
        await bench.completed(job)
    results = await bench.results(job)
    assert len(results) == 300
    assert not any(failed for failed, _ in results.values())


async def test_an_unreadable_file_gives_the_chunk_back(
    bench: WorkerBench, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PAUSE_SECONDS", "PAUSE_SECONDS_MAX"):
        monkeypatch.setattr(f"batch_gpu_worker.intake.{name}", 0.01)
    missing = await bench.plan([line_of("r0", chat("q"))], missing_blob=True)
    async with running_agent(settings) as running:
        await bench.offer(missing, 0)

        async def given_back() -> bool:
            chunk = await bench.chunk(missing)
            return chunk.epoch == 1 and chunk.status is ChunkStatus.READY

        await until(given_back)
        fine = await bench.submit([line_of("r0", chat("q"))])
        await bench.completed(fine)
        await until(lambda: len(running.agent.holdings) == 0)


async def test_the_log_tells_the_life_of_a_worker(bench: WorkerBench, settings: Settings) -> None:
    heard: list[Heartbeat] = []

    async def hear(message: Any) -> None:
        heard.append(msgspec.json.decode(message.data, type=Heartbeat))

    client = bench.store.connection.client
    await client.subscribe(subjects.ALL_HEARTBEATS, cb=hear)
    async with running_agent(changed(settings, heartbeat_seconds=0.05)) as running:
        worker_id = running.agent.worker_id
        await until(lambda: any(beat.state == "ready" for beat in heard))
        job = await bench.submit([line_of(f"r{n}", chat("[[sim:sleep=0.4]]")) for n in range(9)])
        await until(lambda: any(beat.in_flight == 9 and beat.leases == 1 for beat in heard))
        await bench.completed(job)
        await until(lambda: any(beat.output_tokens_per_second > 0 for beat in heard))
    last = heard[-1]
    assert last.worker_id == worker_id
    assert last.name == settings.worker_name
    assert last.models == ["simulated-model"]
    assert last.in_flight_max == 256
    assert last.rss_bytes > 10_000_000
    events = [e.event for e in await bench.events(subjects.aggregate("worker", worker_id))]
    assert [type(event) for event in events] == [WorkerStarted, WorkerReady, WorkerStopped]
    assert events[1] == WorkerReady(
        worker_id=worker_id, models=["simulated-model"], in_flight_max=256
    )


async def test_a_worker_that_was_taken_for_lost_says_it_is_ready_again(
    bench: WorkerBench, settings: Settings
) -> None:
    async with running_agent(changed(settings, flush_seconds=0.1)) as running:
        job = await bench.submit([line_of(f"r{n}", chat("[[sim:hang]]")) for n in range(3)])
        quick = await bench.submit([line_of(f"r{n}", chat("[[sim:sleep=3]]")) for n in range(3)])
        await until(lambda: running.agent.admission.in_flight == 6)
        worker = subjects.aggregate("worker", running.agent.worker_id)
        last = (await bench.events(worker))[-1]
        lost = WorkerLost(worker_id=running.agent.worker_id, reason="silent")
        await bench.store.append(lost, expected=last.seq)
        await bench.release(job)
        await bench.release(quick)

        async def ready_again() -> bool:
            return isinstance((await bench.events(worker))[-1].event, WorkerReady)

        await until(ready_again)
        assert await bench.recorded(quick) == {}  # the results of the lost lease were dropped
        await bench.offer(quick, 0)
        await bench.completed(quick)
        assert (await bench.chunk(quick)).epoch == 2
