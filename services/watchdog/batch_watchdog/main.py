"""The watchdog's process: follows the log, and looks after workers and batches.

Any number may run. Each starts the workers again that it can reach (see `recovery`: the log lets
one of them act); frozen engines and stuck batches are the leader's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from batch_watchdog import open_jobs
from batch_watchdog.frozen_engines import FrozenEngines
from batch_watchdog.measuring import Measuring
from batch_watchdog.open_jobs import OpenJobs
from batch_watchdog.pulse import Pulse
from batch_watchdog.recovery import Recovery
from batch_watchdog.restarters import open_restarter
from batch_watchdog.stuck_jobs import StuckJobs
from vllm_batch import fleet, ids, process, tasks
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.errors import EventStoreError, EventStoreUnavailable
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import Access, JetStreamEventStore
from vllm_batch.events.worker import WorkerEvent
from vllm_batch.fleet import Fleet
from vllm_batch.messaging import subjects
from vllm_batch.messaging.leadership import Leadership
from vllm_batch.metrics.exposition import exposed
from vllm_batch.notify import notify
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

ROLE = "watchdog"
_RETRY_SECONDS = 1.0
_HEARTBEATS_PER_CHECK = 5
_SHORTEST_CHECK_SECONDS = 0.1


class Watchdog:
    """One connection's worth of watching: what it knows is folded from the log, and goes with
    it."""

    def __init__(
        self,
        store: JetStreamEventStore,
        settings: Settings,
        clock: Clock,
        *,
        owner: str,
        measuring: Measuring,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._owner = owner
        self._measuring = measuring
        self._workers_changed = asyncio.Event()
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._every_seconds = min(
            settings.watchdog_check_seconds,
            max(_SHORTEST_CHECK_SECONDS, _HEARTBEATS_PER_CHECK * settings.heartbeat_seconds),
        )

    async def run(self) -> None:
        """Watch for ever."""
        store, settings, clock = self._store, self._settings, self._clock
        position = await store.last_sequence()
        workers, jobs = await fleet.load(store), await open_jobs.load(store)
        pulse = Pulse(clock.monotonic)
        client = store.connection.client
        recovery = Recovery(
            workers, pulse, store, open_restarter(settings),
            settings=settings, clock=clock, metrics=self._measuring.watchdog,
        )  # fmt: skip
        frozen = FrozenEngines(pulse, client, settings, clock.monotonic)
        stuck = StuckJobs(jobs, workers, store, settings, clock)

        async def lead() -> None:
            notify(STATUS="leading")
            await asyncio.gather(
                self._repeat("frozen engines", frozen.check),
                self._repeat("stuck jobs", stuck.check),
            )

        leadership = Leadership(store.js, settings, role=ROLE, owner=self._owner)
        notify(READY=1, STATUS="watching")
        log.info("watching", workers=len(workers.names), jobs=len(jobs.jobs), position=position)
        with self._measuring.watching(workers, jobs, store):
            async with pulse.listening(client):
                await tasks.first_to_end(
                    self._follow(workers, jobs, position),
                    self._recover(recovery),
                    leadership.run(lead),
                )

    async def _follow(self, workers: Fleet, jobs: OpenJobs, position: int) -> None:
        wanted = [subjects.ALL_JOBS, subjects.ALL_CHUNKS, subjects.ALL_WORKERS]
        async for batch in self._store.follow(wanted, after=position):
            for recorded in batch:
                workers.apply(recorded)
                jobs.apply(recorded)
                if isinstance(recorded.event, WorkerEvent):
                    self._workers_changed.set()

    async def _recover(self, recovery: Recovery) -> None:
        """Look whenever a worker's state changes, something is due, or the time is up."""
        while True:
            self._workers_changed.clear()
            seconds = self._every_seconds
            try:
                due = await recovery.check()
                if due is not None:
                    left = (due - self._clock.now()).total_seconds()
                    seconds = min(seconds, max(left, _SHORTEST_CHECK_SECONDS))
            except Exception:  # the outermost loop of this duty
                log.exception("duty failed", duty="recovery")
                self._measuring.duties.note_failure("recovery")
            try:
                async with asyncio.timeout(seconds):
                    await self._workers_changed.wait()
            except TimeoutError:
                continue

    async def _repeat(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await check()
            except EventStoreError as error:
                log.warning("cannot act now", duty=name, error=str(error))
            except Exception:  # the outermost loop of this duty
                log.exception("duty failed", duty=name)
                self._measuring.duties.note_failure(name)
            await asyncio.sleep(self._every_seconds * self._rng.uniform(0.9, 1.1))


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    async with exposed(settings, service=ROLE) as exposition:
        await process.until_told(_watch(settings, Measuring(exposition)))


async def _watch(settings: Settings, measuring: Measuring) -> None:
    owner = ids.new("watchdog_")
    clock = SystemClock()
    while True:
        try:
            async with jetstream.connect(
                settings, source=ROLE, access=Access.READER, metrics=measuring.event_log
            ) as store:
                log.info("connected", owner=owner)
                await Watchdog(store, settings, clock, owner=owner, measuring=measuring).run()
        except EventStoreUnavailable as error:
            log.warning("waiting for the event log", error=str(error))
        except Exception:  # the outermost loop of this process
            log.exception("watching anew")
        await asyncio.sleep(_RETRY_SECONDS)
