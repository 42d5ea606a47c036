"""What a worker does when a lease is taken away while its last request hangs."""

from __future__ import annotations

import asyncio

from tests.worker_bench import WorkerBench, chat, line_of, running_agent, until

from vllm_batch.aggregates import chunk as rules
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.event_store.protocol import append_decided
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

LINES = [line_of("hangs", chat("[[sim:hang]]")), line_of("answers", chat("hello"))]


async def test_a_lease_that_ends_elsewhere_frees_what_hangs(
    event_store: JetStreamEventStore, settings: Settings
) -> None:
    bench = WorkerBench(event_store, settings)
    fast = settings.model_copy(update={"flush_seconds": 0.1})
    async with running_agent(fast) as running:
        job = await bench.submit(LINES)

        async def one_answered() -> bool:
            return (await bench.chunk(job)).completed == 1

        await until(one_answered)
        assert running.agent.admission.in_flight == 1
        await append_decided(
            event_store, subjects.chunk(job, 0), rules.evolve,
            lambda chunk: rules.decide(chunk, rules.Close("stuck")),
        )  # fmt: skip
        await until(lambda: len(running.agent.holdings) == 0)
        await until(lambda: running.agent.admission.in_flight == 0)


async def test_a_chunk_that_is_offered_again_to_its_old_owner_is_leased_anew(
    event_store: JetStreamEventStore, settings: Settings
) -> None:
    bench = WorkerBench(event_store, settings)
    async with running_agent(settings) as running:
        job = await bench.submit(LINES)
        await until(lambda: len(running.agent.holdings) == 1)
        await bench.release(job)
        await bench.offer(job, 0)  # before the news of the release is taken in

        async def leased_anew() -> bool:
            chunk = await bench.chunk(job)
            return chunk.epoch == 2 and chunk.status == "leased"

        await until(leased_anew)
        async with asyncio.timeout(60):
            while [held.lease.epoch for held in running.agent.holdings] != [2]:
                await asyncio.sleep(0.01)
