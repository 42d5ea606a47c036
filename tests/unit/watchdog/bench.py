"""What the watchdog's unit tests stand on: a log in memory, a clock moved by hand, and workers and
jobs as the other services record them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from tests.facts import append, planned, submitted

from batch_watchdog import open_jobs
from batch_watchdog.open_jobs import OpenJobs
from batch_watchdog.pulse import Pulse
from batch_watchdog.recovery import Recovery
from batch_watchdog.restarters.base import Attempt
from batch_watchdog.stuck_jobs import StuckJobs
from vllm_batch import fleet
from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.clock import ManualClock
from vllm_batch.event_store import append_decided
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    Event,
    JobStarted,
    Recorded,
    Segment,
    Usage,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorkerStopped,
)
from vllm_batch.fleet import Fleet, WorkerView
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.metrics.watchdog import WatchdogMetrics
from vllm_batch.settings import Settings

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class RecordingRestarter:
    """Notes whom it was asked to restart, at the real interface."""

    def __init__(self, *, reaches: bool = True) -> None:
        self.restarted: list[WorkerId] = []
        self._reaches = reaches

    async def reaches(self, worker: WorkerView) -> bool:
        return self._reaches

    async def restart(self, worker: WorkerView) -> Attempt:
        self.restarted.append(worker.worker_id)
        return Attempt(True, "asked")


@dataclass
class WatchdogBench:
    """A store, a clock, settings, and shortcuts."""

    home: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = {
            "watchdog_restart_grace_seconds": 10.0,
            "watchdog_backoff_seconds": 4.0,
            "watchdog_backoff_seconds_max": 60.0,
            "crash_loop_restarts": 4,
            "crash_loop_window_seconds": 600.0,
            "stuck_job_seconds": 100.0,
            "stuck_rounds_max": 3,
            **self.overrides,
        }
        self.settings = Settings(home=self.home, **values)
        self.clock = ManualClock(START)
        self.store = MemoryEventStore(clock=self.clock)
        self.restarter = RecordingRestarter()

    async def fleet(self) -> Fleet:
        return await fleet.load(self.store)

    async def jobs(self) -> OpenJobs:
        return await open_jobs.load(self.store)

    async def events(self, subject: str = ">") -> list[Event]:
        return [recorded.event async for batch in self.store.read(subject) for recorded in batch]

    async def started(
        self,
        worker: str,
        *,
        name: str = "gpu",
        version: str = "1",
        models: tuple[str, ...] = ("m",),
    ) -> None:
        worker_id = WorkerId(worker)
        await append(
            self.store,
            WorkerStarted(
                worker_id=worker_id, name=name, host="h", pid=1, engine="simulated",
                version=version,
            ),
        )  # fmt: skip
        await append(
            self.store, WorkerReady(worker_id=worker_id, models=list(models), in_flight_max=8)
        )

    async def lost(self, worker: str) -> None:
        await append(self.store, WorkerLost(worker_id=WorkerId(worker), reason="silent"))

    async def stopped(self, worker: str, reason: str) -> None:
        await append(self.store, WorkerStopped(worker_id=WorkerId(worker), reason=reason))

    async def recovery(self, pulse: Pulse | None = None) -> Recovery:
        """Return a recovery as a watchdog that starts now has it."""
        return Recovery(
            await self.fleet(), pulse or Pulse(self.clock.monotonic), self.store, self.restarter,
            settings=self.settings, clock=self.clock,
            metrics=WatchdogMetrics(CollectorRegistry()),
        )  # fmt: skip

    async def stuck_jobs(self) -> StuckJobs:
        """Return the duty as a watchdog that starts now has it."""
        return StuckJobs(
            await self.jobs(), await self.fleet(), self.store, self.settings, self.clock
        )

    async def job(self, job: str = "batch_1", chunks: int = 1) -> JobId:
        """Record a running job of ``chunks`` chunks of ten requests."""
        await append(
            self.store,
            submitted(job),
            *(planned(job, number) for number in range(chunks)),
            JobStarted(job_id=JobId(job), total=10 * chunks, chunks=chunks, model="m"),
        )
        return JobId(job)

    async def lease(self, job: JobId, chunk: int = 0, worker: str = "w1") -> None:
        await self.chunk_command(job, chunk, chunk_rules.Lease(WorkerId(worker)))

    async def progress(self, job: JobId, chunk: int = 0) -> None:
        """Hand in one result of a leased chunk."""

        def decide(state: chunk_rules.Chunk | None) -> Event:
            assert state is not None
            segment = Segment("s", 1, 1, 0)
            return chunk_rules.decide(state, chunk_rules.Record(state.epoch, segment, Usage()))

        await append_decided(self.store, subjects.chunk(job, chunk), chunk_rules.evolve, decide)

    async def chunk_command(self, job: JobId, chunk: int, command: chunk_rules.Command) -> Recorded:
        recorded, _ = await append_decided(
            self.store, subjects.chunk(job, chunk), chunk_rules.evolve,
            lambda state: chunk_rules.decide(state, command),
        )  # fmt: skip
        return recorded


def heartbeat(worker: str = "w1", **changes: Any) -> Heartbeat:
    """Return a heartbeat of a worker that works."""
    fields: dict[str, Any] = {
        "worker_id": WorkerId(worker), "name": "gpu", "host": "h", "pid": 1, "time": START,
        "state": "ready", "engine": "simulated", "in_flight": 4, **changes,
    }  # fmt: skip
    return Heartbeat(**fields)
