"""Worker processes that are ended, killed, frozen and cut off, with an oracle on what is left."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NatsServer
from tests.worker_bench import WorkerBench, chat, line_of, until, worker_process

from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.errors import Rejected
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import ChunkReleased, WorkerReady, WorkerStopped
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

IN_FLIGHT_MAX = 32
FLUSH_RESULTS = 16


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def worker_settings(settings: Settings, journal: Path) -> Settings:
    return settings.model_copy(
        update={
            "engine_max_num_seqs": IN_FLIGHT_MAX // 2,
            "flush_results": FLUSH_RESULTS,
            "simulated_latency_seconds": 0.02,
            "simulated_journal": journal,
            "drain_notice_seconds": 30.0,
        }
    )


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> WorkerBench:
    return WorkerBench(event_store, settings)


def executed(journal: Path) -> Counter[str]:
    """Return how often each request was given to an engine, by its digest."""
    return Counter(journal.read_text().split()) if journal.exists() else Counter()


async def until_executed(journal: Path, count: int) -> None:
    await until(lambda: executed(journal).total() >= count)


async def release_all(bench: WorkerBench, job: JobId) -> None:
    """Do what the leader does when a worker is lost, and offer the chunks again."""
    for number, chunk in (await bench.chunks(job)).items():
        if chunk.status is ChunkStatus.LEASED:
            with suppress(Rejected):  # completed at this moment
                await bench.release(job, number)
        if not chunk.terminal:
            await bench.offer(job, number)


def requests(count: int) -> list[bytes]:
    return [line_of(f"r{n}", chat(f"question {n}")) for n in range(count)]


async def check(bench: WorkerBench, job: JobId, count: int) -> None:
    results = await bench.results(job)  # every custom_id at most once
    assert set(results) == {f"r{n}" for n in range(count)}
    assert not any(failed for failed, _ in results.values())
    chunks = (await bench.chunks(job)).values()
    assert sum(chunk.completed for chunk in chunks) == count


async def test_a_kill_costs_at_most_what_was_in_flight_and_one_flush(
    bench: WorkerBench, worker_settings: Settings, journal: Path
) -> None:
    job = await bench.submit(requests(1500))
    for kills in range(1, 4):
        async with worker_process(worker_settings) as worker:
            await until_executed(journal, kills * 250)
            worker.send_signal(signal.SIGKILL)
            await worker.wait()
        await release_all(bench, job)
    async with worker_process(worker_settings):
        await bench.completed(job)
    await check(bench, job, 1500)
    again = executed(journal).total() - 1500
    assert 0 <= again <= 3 * (IN_FLIGHT_MAX + FLUSH_RESULTS)
    assert len(executed(journal)) == 1500


async def test_a_drained_worker_loses_nothing_and_computes_nothing_twice(
    bench: WorkerBench, worker_settings: Settings, journal: Path
) -> None:
    count = 3000
    job = await bench.submit(requests(count))
    for _ in range(3):
        before = executed(journal).total()
        async with worker_process(worker_settings) as worker:
            await until_executed(journal, before + 200)
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(worker.wait(), 60) == 0
        chunks = (await bench.chunks(job)).values()
        assert not [chunk for chunk in chunks if chunk.status is ChunkStatus.LEASED]
        assert executed(journal).total() == sum(chunk.completed for chunk in chunks)
        await release_all(bench, job)
    async with worker_process(worker_settings):
        await bench.completed(job)
    await check(bench, job, count)
    assert executed(journal).total() == count
    assert set(executed(journal).values()) == {1}
    stops = [r.event for r in await bench.events(subjects.every(WorkerStopped))]
    assert [stop.reason for stop in stops if isinstance(stop, WorkerStopped)][:3] == ["drained"] * 3


async def test_what_hangs_is_given_back_before_the_notice_is_over(
    bench: WorkerBench, worker_settings: Settings, journal: Path
) -> None:
    lines = [*requests(5), *(line_of(f"h{n}", chat(f"[[sim:hang]] {n}")) for n in range(5))]
    settings = worker_settings.model_copy(update={"drain_notice_seconds": 9.0})
    async with worker_process(settings) as worker:
        job = await bench.submit(lines)
        await until_executed(journal, 10)
        worker.send_signal(signal.SIGTERM)
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await asyncio.wait_for(worker.wait(), 60) == 0
        assert 1.0 < loop.time() - before < 9.0
    assert set(await bench.results(job)) == {f"r{n}" for n in range(5)}
    last = (await bench.events(subjects.chunk(job, 0)))[-1].event
    assert isinstance(last, ChunkReleased)
    assert last.reason == "drained"


async def test_a_second_sigterm_hurries(
    bench: WorkerBench, worker_settings: Settings, journal: Path, capfd: Any
) -> None:
    settings = worker_settings.model_copy(update={"drain_notice_seconds": 300.0})
    async with worker_process(settings) as worker:
        job = await bench.submit(
            [*requests(5), *(line_of(f"h{n}", chat(f"[[sim:hang]] {n}")) for n in range(5))]
        )
        await until_executed(journal, 10)
        worker.send_signal(signal.SIGTERM)
        await until(lambda: "draining" in capfd.readouterr().err)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 60) == 0
    assert set(await bench.results(job)) == {f"r{n}" for n in range(5)}
    assert (await bench.chunk(job)).status is ChunkStatus.READY


async def test_a_frozen_worker_that_wakes_up_writes_nothing(
    bench: WorkerBench, worker_settings: Settings, journal: Path
) -> None:
    job = await bench.submit(requests(800))
    async with worker_process(worker_settings) as zombie:
        await until_executed(journal, 200)
        zombie.send_signal(signal.SIGSTOP)
        await release_all(bench, job)
        heir_settings = worker_settings.model_copy(update={"worker_name": "heir"})
        async with worker_process(heir_settings):
            await until_executed(journal, 400)
            zombie.send_signal(signal.SIGCONT)
            await bench.completed(job)
            await check(bench, job, 800)
            # It still works, for the next job.
            zombie_alive = zombie.returncode is None
            assert zombie_alive
    for number, chunk in (await bench.chunks(job)).items():
        epoch = 0
        for recorded in await bench.events(subjects.chunk(job, number)):
            epoch_of_event = getattr(recorded.event, "epoch", epoch)
            assert epoch_of_event >= epoch, "an event of an epoch that is over"
            epoch = epoch_of_event
        assert chunk.status is ChunkStatus.COMPLETED
    # At most what was in flight and at risk when it froze was computed twice.
    again = executed(journal).total() - 800
    assert again <= IN_FLIGHT_MAX + FLUSH_RESULTS


async def test_a_worker_goes_on_when_nats_comes_back(
    bench: WorkerBench, worker_settings: Settings, journal: Path, nats_server: NatsServer
) -> None:
    job = await bench.submit(requests(1000))
    async with worker_process(worker_settings) as worker:
        await until_executed(journal, 200)
        nats_server.kill()
        before = executed(journal).total()
        at_risk = before + IN_FLIGHT_MAX + FLUSH_RESULTS

        async def is_still() -> bool:
            seen = executed(journal).total()
            await asyncio.sleep(0.3)
            return executed(journal).total() == seen

        await until(is_still)
        assert executed(journal).total() <= at_risk
        nats_server.start()
        await until(lambda: bench.store.connection.client.is_connected)
        await bench.completed(job)
        assert worker.returncode is None
    await check(bench, job, 1000)
    assert executed(journal).total() == 1000  # nothing was lost, nothing computed twice
    chunks = (await bench.chunks(job)).values()
    assert {chunk.epoch for chunk in chunks} == {1}


async def test_two_workers_share_a_job(
    bench: WorkerBench, worker_settings: Settings, journal: Path
) -> None:
    second = worker_settings.model_copy(update={"worker_name": "second"})
    async with worker_process(worker_settings), worker_process(second):

        async def both_ready() -> bool:
            return len(await bench.events(subjects.every(WorkerReady))) == 2

        await until(both_ready)
        job = await bench.submit(requests(2000))
        await bench.completed(job)
    await check(bench, job, 2000)
    assert executed(journal).total() == 2000
    shares = Counter(recorded.source for recorded in await bench.events("chunk.completed.>"))
    assert len(shares) == 2
    assert min(shares.values()) >= 5


async def test_a_worker_without_nats_says_so_and_ends(
    worker_settings: Settings, nats_server: NatsServer, capfd: Any
) -> None:
    nats_server.kill()
    async with worker_process(worker_settings) as worker:
        assert await asyncio.wait_for(worker.wait(), 60) == 1
    assert "no NATS server answers" in capfd.readouterr().err


async def test_an_engine_that_cannot_run_ends_the_worker_with_a_reason(
    bench: WorkerBench, worker_settings: Settings, capfd: Any
) -> None:
    settings = worker_settings.model_copy(update={"engine": "openai"})
    async with worker_process(settings) as worker:
        assert await asyncio.wait_for(worker.wait(), 60) == 1
    assert "engine_url" in capfd.readouterr().err
    stops = [recorded.event for recorded in await bench.events(subjects.every(WorkerStopped))]
    assert [stop.reason for stop in stops if isinstance(stop, WorkerStopped)] == ["engine_failed"]
