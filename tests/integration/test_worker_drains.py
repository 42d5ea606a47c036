"""Ends with notice, over and over: nothing that was finished is computed again."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from tests.worker_bench import WorkerBench, chat, line_of, running_agent, until, worker_process

from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.ids import JobId
from vllm_batch.settings import Settings

ROUNDS = 50
REQUESTS = 6000


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> WorkerBench:
    return WorkerBench(event_store, settings)


@pytest.fixture
def worker_settings(settings: Settings, journal: Path) -> Settings:
    return settings.model_copy(
        update={
            "engine_max_num_seqs": 16,
            "flush_results": 16,
            "simulated_latency_seconds": 0.02,
            "simulated_journal": journal,
            "drain_notice_seconds": 30.0,
        }
    )


def executed(journal: Path) -> Counter[str]:
    return Counter(journal.read_text().split()) if journal.exists() else Counter()


async def offer_open(bench: WorkerBench, job: JobId) -> None:
    for number, chunk in (await bench.chunks(job)).items():
        assert chunk.status is not ChunkStatus.LEASED, "a drained worker left a lease"
        if not chunk.terminal:
            await bench.offer(job, number)


async def test_fifty_drains_compute_nothing_twice(
    bench: WorkerBench, worker_settings: Settings, journal: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    lines = [line_of(f"r{n}", chat(f"question {n}")) for n in range(REQUESTS)]
    job = await bench.submit(lines)
    for _ in range(ROUNDS):
        async with running_agent(worker_settings) as running:
            some = rng.randrange(1, 60)
            await until(lambda some=some: running.agent.admission.answered >= some)
            running.stop.ask()
            assert await asyncio.wait_for(asyncio.shield(running.task), 60) == 0
        recorded = sum(chunk.completed for chunk in (await bench.chunks(job)).values())
        assert executed(journal).total() == recorded
        assert recorded < REQUESTS
        await offer_open(bench, job)
    async with running_agent(worker_settings):
        await bench.completed(job)
    assert len(await bench.results(job)) == REQUESTS
    assert set(executed(journal).values()) == {1}
    assert executed(journal).total() == REQUESTS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_either_signal_drains(
    bench: WorkerBench, worker_settings: Settings, journal: Path, number: signal.Signals
) -> None:
    lines = [line_of(f"r{n}", chat(f"question {n}")) for n in range(3000)]
    job = await bench.submit(lines)
    async with worker_process(worker_settings) as worker:
        await until(lambda: executed(journal).total() >= 100)
        worker.send_signal(number)
        assert await asyncio.wait_for(worker.wait(), 60) == 0
    chunks = (await bench.chunks(job)).values()
    assert not [chunk for chunk in chunks if chunk.status is ChunkStatus.LEASED]
    assert 100 <= sum(chunk.completed for chunk in chunks) == executed(journal).total() < 3000
    assert len(await bench.results(job)) == executed(journal).total()
