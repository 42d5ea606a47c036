"""SIGKILL of every process of the stack in the middle of a batch: no promise breaks."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import pytest

from tests.faults.conftest import StartBench
from tests.faults.workload import ENDED
from vllm_batch.errors import StackError


async def test_without_faults_nothing_is_found_and_nothing_runs_twice(
    start_bench: StartBench,
) -> None:
    bench = start_bench(workers=2)
    work = bench.submit("calm", 1000)
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=0) == []


async def test_workers_killed(start_bench: StartBench) -> None:
    bench = start_bench(workers=2)
    work = bench.submit("workers", 3000)
    for results, name in ((500, "worker-1"), (1200, "worker-2")):
        bench.client.wait_progress(work, results)
        service = bench.stack.service(name)
        service.wait_restarted(service.kill())
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=2) == []


async def test_the_only_worker_killed_and_gone_for_a_while(start_bench: StartBench) -> None:
    bench = start_bench(workers=1)
    work = bench.submit("alone", 1500)
    bench.client.wait_progress(work, 300)
    service = bench.stack.service("worker-1")
    service.hold()
    service.release()
    service.wait_ready()
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=1) == []


async def test_the_engine_crashed(start_bench: StartBench) -> None:
    """One request crashes the engine each of the three times it is tried, then it is given up."""
    bench = start_bench(workers=2)
    work = bench.submit("engine", 2000, marks={700: "[[sim:crash]]"})
    batch = bench.client.wait_ended(work)
    assert batch.status == "completed"
    errors = {row["custom_id"]: row for row in bench.client.content(batch.error_file_id)}
    assert errors[work.lines[700].custom_id]["error"]["code"] == "engine_crash"
    assert await bench.oracle.findings(kills=3) == []


async def test_the_orchestrator_killed_again_and_again(start_bench: StartBench) -> None:
    bench = start_bench()
    service = bench.stack.service("orchestrator")
    work = bench.submit("orchestrator", 2000)
    service.wait_restarted(service.kill())  # while it plans
    for results in (500, 1500):
        bench.client.wait_progress(work, results)
        service.wait_restarted(service.kill())
    bench.client.wait_progress(work, 2000)
    service.kill()  # while it writes the files
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=0) == []


async def test_the_api_killed_again_and_again(start_bench: StartBench) -> None:
    bench = start_bench()
    service = bench.stack.service("api")
    work = bench.submit("api", 1500)
    for results in (100, 700, 1200):
        old = service.kill()
        service.wait_restarted(old)
        bench.client.wait_progress(work, results)
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=0) == []


@pytest.mark.parametrize("server", ["nats", "postgres"])
async def test_a_server_killed_again_and_again(start_bench: StartBench, server: str) -> None:
    bench = start_bench(workers=2)
    service = bench.stack.service(server)
    work = bench.submit(server, 3000)
    for results in (300, 1200, 2400):
        bench.client.wait_progress(work, results)
        service.wait_restarted(service.kill())
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=0) == []


async def test_everything_killed_in_any_order(start_bench: StartBench) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    bench = start_bench(workers=2, orchestrators=2)
    services = [bench.stack.service(status.name) for status in bench.stack.services()]
    works = [bench.submit(f"any{number}", 2000) for number in range(2)]
    kills = 0
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        service = chance.choice(services)
        with suppress(StackError, ProcessLookupError):  # it went down with another
            service.wait_ready()
            service.kill()
            kills += service.name.startswith("worker")
        bench.client.wait_progress(works[0], 0)  # the API answers
        if all(bench.client.batch(work).status in ENDED for work in works):
            break
    for work in works:
        assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=kills) == []
