"""Processes that stop for longer than they may and then go on as if nothing had happened."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from tests.faults.conftest import Bench, StartBench
from vllm_batch.event_store import jetstream
from vllm_batch.events import ChunkLeased, ChunkReleased, Event, Recorded, WorkerLost

FREEZES = 1


async def log_of(bench: Bench, subject: str) -> list[Recorded]:
    async with jetstream.connect(bench.stack.settings, source="test") as store:
        return [recorded async for batch in store.read(subject) for recorded in batch]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 90) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


async def taken_over(bench: Bench) -> bool:
    """Tell whether every chunk that a lost worker held was leased by another since."""
    held: dict[tuple[str, ...], Event] = {}
    lost = False
    for recorded in await log_of(bench, ">"):
        event = recorded.event
        lost = lost or isinstance(event, WorkerLost)
        if isinstance(event, ChunkReleased) and event.reason == "worker_lost":
            held[event.aggregate_id()] = event
        elif isinstance(event, ChunkLeased):
            held.pop(event.aggregate_id(), None)
    return lost and not held


async def test_a_worker_frozen_past_its_lease_writes_nothing_when_it_wakes(
    start_bench: StartBench,
) -> None:
    bench = start_bench(workers=2)
    work = bench.submit("frozen", 4000)
    bench.client.wait_progress(work, 500)
    zombie = bench.stack.service("worker-1")
    zombie.kill(signal.SIGSTOP)
    try:
        await until(lambda: taken_over(bench))
    finally:
        zombie.kill(signal.SIGCONT)

    async def refused() -> bool:
        return "lease lost" in zombie.log_text()

    await until(refused)  # it did try to write
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=FREEZES) == []


async def test_a_batch_is_cancelled_while_its_only_worker_is_frozen(
    start_bench: StartBench,
) -> None:
    bench = start_bench(workers=1, cancel_grace_seconds=1.0)
    work = bench.submit("cancelled", 4000)
    bench.client.wait_progress(work, 500)
    zombie = bench.stack.service("worker-1")
    zombie.kill(signal.SIGSTOP)
    try:
        bench.client.openai.batches.cancel(work.batch_id)
        batch = bench.client.wait_ended(work, 120)
    finally:
        zombie.kill(signal.SIGCONT)
    assert batch.status == "cancelled"
    assert 500 <= results(bench) < 4000

    async def refused() -> bool:
        return "lease lost" in zombie.log_text()

    await until(refused)
    assert await bench.oracle.findings(kills=FREEZES) == []


def leader(bench: Bench) -> str:
    """Return the orchestrator that says it leads."""

    def leading() -> str | None:
        return next((s.name for s in bench.stack.services() if s.status == "leading"), None)

    return bench.stack.wait_for(leading, 60, "an orchestrator to lead")


def other(name: str) -> str:
    return "orchestrator-2" if name == "orchestrator" else "orchestrator"


def wait_status(bench: Bench, name: str, wanted: str) -> None:
    service = bench.stack.service(name)
    bench.stack.wait_for(lambda: service.status.status == wanted, 60, f"{name} to be {wanted}")


async def test_a_leader_frozen_past_its_lease_does_no_harm_when_it_wakes(
    start_bench: StartBench,
) -> None:
    bench = start_bench(workers=2, orchestrators=2)
    work = bench.submit("leader", 6000)
    bench.client.wait_progress(work, 300)
    for _ in range(2):
        frozen = leader(bench)
        service = bench.stack.service(frozen)
        service.kill(signal.SIGSTOP)
        try:
            wait_status(bench, other(frozen), "leading")
            bench.client.wait_progress(work, min(6000, results(bench) + 500))
        finally:
            service.kill(signal.SIGCONT)
        wait_status(bench, frozen, "standing by")
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=0) == []


def results(bench: Bench) -> int:
    counts = bench.client.batch(bench.works[0]).request_counts
    return counts.completed + counts.failed if counts else 0


async def test_the_leader_dies_and_the_other_takes_over_each_time(start_bench: StartBench) -> None:
    bench = start_bench(workers=2, orchestrators=2)
    works = [bench.submit(f"two{number}", 1500) for number in range(3)]
    for _ in range(3):
        service = bench.stack.service(leader(bench))
        service.hold()  # back too soon, it may well lead again
        wait_status(bench, other(service.name), "leading")
        service.release()
        service.wait_ready()
    for work in works:
        assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=0) == []


async def test_postgres_down_for_half_a_minute_while_inference_goes_on(
    start_bench: StartBench,
) -> None:
    bench = start_bench(workers=1)
    before = bench.submit("before", 9000)
    bench.client.wait_progress(before, 300)
    fallen = results(bench)
    postgres = bench.stack.service("postgres")
    postgres.hold(signal.SIGKILL)
    down_since = time.monotonic()
    try:
        during = bench.submit("during", 300)
        assert bench.client.wait_ended(during, 120).status == "completed"
        shown = fallen
        while time.monotonic() - down_since < 30 or shown < min(9000, fallen + 300):
            now = results(bench)
            assert now >= shown
            shown = now
            await asyncio.sleep(0.5)
    finally:
        postgres.release()
    postgres.wait_ready()
    assert bench.client.wait_ended(before, 400).status == "completed"
    assert await bench.oracle.findings(kills=0) == []
