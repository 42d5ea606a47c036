"""How soon the work of a dead worker goes on, and that zombies write nothing, round after round."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.faults.conftest import Bench, StartBench
from vllm_batch.event_store import jetstream
from vllm_batch.events import ChunkLeased, ChunkReleased, Recorded

# On a quiet machine 3 s and 4 s: lease and heartbeat, a look each second, and the way back.
RELEASED_SECONDS_MAX = 10.0
TAKEOVER_SECONDS_MAX = 15.0
ROUNDS = 6


async def log_of(bench: Bench) -> list[Recorded]:
    async with jetstream.connect(bench.stack.settings, source="test") as store:
        return [recorded async for batch in store.read("chunk.>") for recorded in batch]


def takeovers(log: list[Recorded], after: int) -> list[Recorded]:
    """Return the leases of chunks that were released from lost workers after that sequence."""
    released: set[tuple[str, ...]] = set()
    found = []
    for recorded in log:
        event = recorded.event
        if isinstance(event, ChunkReleased) and event.reason == "worker_lost":
            if recorded.seq > after:
                released.add(event.aggregate_id())
        elif isinstance(event, ChunkLeased) and event.aggregate_id() in released:
            released.discard(event.aggregate_id())
            found.append(recorded)
    return found


async def wait_takeover(bench: Bench, after: int) -> Recorded:
    async with asyncio.timeout(60):
        while not (found := takeovers(await log_of(bench), after)):
            await asyncio.sleep(0.05)
    return found[0]


async def test_a_dead_workers_chunk_goes_on_soon(start_bench: StartBench) -> None:
    # With all that is offered ahead by default: what is given back goes before it.
    bench = start_bench(workers=2, lease_seconds=2.0, simulated_latency_seconds=0.2)
    work = bench.submit("dead", 4000)
    bench.client.wait_progress(work, 500)
    dead = bench.stack.service("worker-1")
    before = (await log_of(bench))[-1].seq
    killed_at = time.time()
    dead.hold()  # it does not come back: only its silence tells that it is gone
    taken = await wait_takeover(bench, before)
    seconds = taken.time.timestamp() - killed_at
    released = next(
        recorded.time.timestamp() - killed_at
        for recorded in await log_of(bench)
        if recorded.seq > before and isinstance(recorded.event, ChunkReleased)
    )
    print(f"released {released:.2f} s, taken over {seconds:.2f} s after the death")
    assert released <= RELEASED_SECONDS_MAX
    assert seconds <= TAKEOVER_SECONDS_MAX
    dead.release()
    dead.wait_ready()
    assert bench.client.wait_ended(work).status == "completed"
    assert await bench.oracle.findings(kills=1) == []


async def test_zombies_in_many_rounds_write_nothing(start_bench: StartBench) -> None:
    bench = start_bench(workers=2, lease_seconds=1.0, heartbeat_seconds=0.25)
    for number in range(ROUNDS):
        work = bench.submit(f"zombies{number}", 1500)
        bench.client.wait_progress(work, 100)
        zombie = bench.stack.service(f"worker-{1 + number % 2}")
        before = (await log_of(bench))[-1].seq
        zombie.kill(signal.SIGSTOP)
        try:
            await wait_takeover(bench, before)
        finally:
            zombie.kill(signal.SIGCONT)
    for work in bench.works:
        assert bench.client.wait_ended(work).status == "completed"
    # A write by a zombie is an event of an epoch that is over: the oracle's first rule.
    assert await bench.oracle.findings(kills=ROUNDS) == []
