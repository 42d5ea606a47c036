"""Requests that kill the engine, in a whole stack: found alone, and all others succeed."""

from __future__ import annotations

from tests.faults.conftest import Bench, StartBench
from vllm_batch.event_store import jetstream
from vllm_batch.events import WorkerEngineRestarted
from vllm_batch.messaging import subjects

RESTARTS_MAX = 12


async def engine_restarts(bench: Bench) -> int:
    """Return how often any worker's engine was started again."""
    async with jetstream.connect(bench.stack.settings, source="test") as store:
        every = subjects.every(WorkerEngineRestarted)
        return len([event async for batch in store.read(every) for event in batch])


async def test_one_poison_in_a_thousand_costs_few_restarts(start_bench: StartBench) -> None:
    bench = start_bench(workers=2, simulated_latency_seconds=0.02)
    work = bench.submit("poison", 1000, marks={617: "[[sim:crash]]"})
    batch = bench.client.wait_ended(work)
    assert batch.status == "completed"
    errors = {row["custom_id"]: row for row in bench.client.content(batch.error_file_id)}
    crashed = [name for name, row in errors.items() if (row["error"] or {}).get("code")]
    assert crashed == [work.lines[617].custom_id]
    assert errors[crashed[0]]["error"]["code"] == "engine_crash"
    restarts = await engine_restarts(bench)
    print(f"{restarts} engine restarts for 1 poison in 1,000")
    assert 2 <= restarts <= RESTARTS_MAX
    assert await bench.oracle.findings(kills=restarts) == []


async def test_a_poison_moves_no_worker_down_with_it(start_bench: StartBench) -> None:
    """The agent is killed while the poison is being looked for: the next owner finds it as well."""
    bench = start_bench(workers=2, simulated_latency_seconds=0.02)
    work = bench.submit("killed", 3000, marks={1500: "[[sim:crash]]"})
    bench.client.wait_progress(work, 1000)
    for name in ("worker-1", "worker-2"):
        service = bench.stack.service(name)
        service.wait_restarted(service.kill())
    assert bench.client.wait_ended(work).status == "completed"
    restarts = await engine_restarts(bench)
    assert restarts <= 2 * RESTARTS_MAX  # what one worker learned dies with it
    assert await bench.oracle.findings(kills=2 + restarts) == []
