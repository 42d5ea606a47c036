"""A large batch in which something is killed every two seconds, in an order that a seed gives."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import pytest

from tests.faults.conftest import Bench, StartBench
from tests.faults.workload import Workload
from vllm_batch.errors import StackError

REQUESTS = 20_000
KILL_EVERY_SECONDS = 2.0
KILLS_MAX = 15  # then it may end in peace: on a slow machine a process dies before it has begun
# Two that always run, and one nobody has seen: its number is in the test's output; put here, it
# runs again.
SEEDS = [1, 2, None]
# 20,000 requests of 0.25 s, 256 in flight: 20 s alone, so some ten kills.
FAST = {"engine_max_num_seqs": 64, "chunk_requests_max": 500, "simulated_latency_seconds": 0.25}


def kill_until_ended(bench: Bench, work: Workload, chance: random.Random) -> list[str]:
    """Kill a random process every two seconds until the batch has ended, KILLS_MAX at most; returns
    their names."""
    names = [status.name for status in bench.stack.services()]
    killed: list[str] = []
    due = time.monotonic() + KILL_EVERY_SECONDS
    while len(killed) < KILLS_MAX:
        with suppress(TimeoutError):
            bench.client.wait_ended(work, max(0.1, due - time.monotonic()))
            return killed
        due = time.monotonic() + KILL_EVERY_SECONDS
        name = chance.choice(names)
        with suppress(StackError, ProcessLookupError):  # it is on its way back from its last death
            bench.stack.service(name).kill()
            killed.append(name)
    bench.client.wait_ended(work, 400)
    return killed


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed or 'any'}")
async def test_a_process_killed_every_two_seconds(
    start_bench: StartBench, seed: int | None
) -> None:
    seed = seed or random.SystemRandom().randrange(3, 1_000_000)
    print(f"seed {seed}")
    bench = start_bench(workers=2, orchestrators=2, **FAST)
    work = bench.submit(f"kills{seed}", REQUESTS)
    killed = kill_until_ended(bench, work, random.Random(seed))
    print(f"killed {killed} in {time.monotonic() - work.started:.1f} s")
    batch = bench.client.batch(work)
    assert batch.status == "completed"
    assert len(killed) >= 3
    workers = sum(name.startswith("worker") for name in killed)
    assert await bench.oracle.findings(kills=workers) == []
