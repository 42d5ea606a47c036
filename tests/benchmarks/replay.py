"""How fast the event log becomes rows: a real NATS, a real Postgres, the projector.

    python -m tests.benchmarks.replay                      100,000 events, three rounds
    python -m tests.benchmarks.replay --events 400000 --rounds 5
    python -m tests.benchmarks.replay --together 2000      nearly every event changes another row
    python -m tests.benchmarks.replay --profile            where the projector's time goes

The log is that of ordinary batches: per chunk one planning, one lease, three checkpoints and the
end, with many chunks in progress together. Each round drops the schema and replays all of it.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import uvloop
from rich.console import Console
from rich.table import Table

from tests.benchmarks.processes import sample
from tests.facts import planned, progressed, submitted
from vllm_batch import ids
from vllm_batch.clock import SystemClock
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    ChunkCompleted,
    ChunkLeased,
    Event,
    JobCompleted,
    JobFinalizing,
    JobStarted,
    Usage,
    encode,
)
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects
from vllm_batch.projections import rebuild
from vllm_batch.settings import Settings

TARGET_EVENTS_PER_SECOND = 20_000
REQUESTS_PER_CHUNK = 256
PUBLISHED_AT_ONCE = 500
console = Console()


@dataclass(frozen=True)
class Round:
    """One replay: its events, wall seconds, and the CPU seconds of each process."""

    events: int
    seconds: float
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


def log(together: int) -> Iterator[Event]:
    """Yield the events of one batch of ``4 * together`` chunks after the other, for ever."""
    chunks = 4 * together
    total = chunks * REQUESTS_PER_CHUNK
    while True:
        job = ids.new_job_id()
        yield submitted(job)
        yield from (planned(job, chunk, REQUESTS_PER_CHUNK) for chunk in range(chunks))
        yield JobStarted(job_id=job, total=total, chunks=chunks, model="m")
        for first in range(0, chunks, together):
            running = range(first, first + together)
            yield from (leased(job, chunk) for chunk in running)
            for done in (64, 128, 192):
                yield from (progressed(job, chunk, done) for chunk in running)
            yield from (completed(job, chunk) for chunk in running)
        yield JobFinalizing(job_id=job, outcome="completed")
        yield JobCompleted(
            job_id=job, total=total, completed=total, failed=0, usage=Usage(1, 0, 1, 0)
        )


def leased(job: JobId, chunk: int) -> Event:
    """Return a lease."""
    return ChunkLeased(job_id=job, chunk=chunk, epoch=1, worker_id=WorkerId("w1"))


def completed(job: JobId, chunk: int) -> Event:
    """Return a chunk's end."""
    return ChunkCompleted(
        job_id=job, chunk=chunk, epoch=1, worker_id=WorkerId("w1"), completed=REQUESTS_PER_CHUNK,
        failed=0, usage=Usage(5000, 0, 2000, 0),
    )  # fmt: skip


async def fill(store: JetStreamEventStore, events: int, together: int) -> None:
    """Put ``events`` events into the log: in their order, without the checks of an append."""
    clock = SystemClock()
    client = store.connection.client
    pending = islice(log(together), events)
    while batch := list(islice(pending, PUBLISHED_AT_ONCE)):
        for event in batch[:-1]:
            await client.publish(subjects.of_event(event), payload_of(event, clock))
        last = batch[-1]
        await store.js.publish(subjects.of_event(last), payload_of(last, clock), timeout=60.0)


def payload_of(event: Event, clock: SystemClock) -> bytes:
    """Return what an append would send."""
    return encode(event, event_id=ids.new_event_id(), source="benchmark", time=clock.now())


async def follow_only(store: JetStreamEventStore, events: int) -> float:
    """Return the seconds it takes to read and decode the log, without Postgres."""
    started = time.perf_counter()
    async for batch in store.follow([">"]):
        if batch[-1].seq >= events:
            break
    return time.perf_counter() - started


async def replay(stack: LocalStack, store: JetStreamEventStore, settings: Settings) -> Round:
    """Drop the schema, replay, measure."""
    before = cpu(stack)
    started = time.perf_counter()
    events = await rebuild.rebuild(store, settings, progress=lambda _seq, _target: None)
    seconds = time.perf_counter() - started
    return Round(events, seconds, {name: used - before[name] for name, used in cpu(stack).items()})


def cpu(stack: LocalStack) -> dict[str, float]:
    """Return the CPU seconds so far of the servers and of this process."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    servers = {s.name: sample(s.pid).cpu_seconds for s in stack.services() if s.pid}
    return {**servers, "projector": own.ru_utime + own.ru_stime}


async def measure(stack: LocalStack, options: argparse.Namespace) -> list[Round]:
    """Fill the log and replay it several times; the tables must be right after the last."""
    events: int = options.events
    settings = stack.settings.model_copy(update={"log_level": "ERROR"})
    async with jetstream.connect(settings, source="benchmark") as store:
        console.print(f"writing {events:,} events")
        await fill(store, events, options.together)
        seconds = await follow_only(store, events)
        console.print(f"reading and decoding alone: {events / seconds:,.0f} events/s")
        done = [await replay(stack, store, settings) for _ in range(options.rounds)]
        if options.profile:
            with cProfile.Profile() as profiler:
                await replay(stack, store, settings)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        found = await rebuild.verify(store, settings, progress=lambda _seq, _target: None)
        if not found.identical:
            raise SystemExit("two replays of one log differ")
        return done


def report(rounds: list[Round]) -> None:
    """Print what was measured."""
    names = list(rounds[0].cpu)
    table = Table(
        "round", "events", "seconds", "events/s", "of target", *(f"{n} µs" for n in names)
    )
    for number, one in enumerate(rounds, 1):
        table.add_row(
            str(number), f"{one.events:,}", f"{one.seconds:.2f}", f"{one.rate:,.0f}",
            f"{one.rate / TARGET_EVENTS_PER_SECOND:.2f}",
            *(f"{one.cpu[name] / one.events * 1e6:.1f}" for name in names),
        )  # fmt: skip
    console.print(table)
    console.print(f"target {TARGET_EVENTS_PER_SECOND:,} events/s; µs: CPU per event")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", type=int, default=16, help="chunks in progress together")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="vllm-batch-replay-") as home,
        LocalStack(home, only={"nats", "postgres"}) as stack,
    ):
        work = measure(stack, arguments)
        report(uvloop.run(work))


if __name__ == "__main__":
    main()
