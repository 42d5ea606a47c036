"""Starts missed workers again, and announces crash loops.

Reads the fleet and the pulse; records ``worker.restart_requested`` before each restart and
``worker.crash_looping`` instead of the one too many. The record is the claim: of two watchdogs that
see the same loss, the log lets one through, and only that one acts.
"""

from __future__ import annotations

from datetime import datetime

import structlog

from batch_watchdog.pulse import Pulse
from batch_watchdog.restart_policy import GiveUp, Leave, Restart, Wait, next_move
from batch_watchdog.restarters import Restarter
from vllm_batch.clock import Clock
from vllm_batch.errors import Conflict
from vllm_batch.event_store import EventStore
from vllm_batch.events import Event, WorkerCrashLooping, WorkerRestartRequested
from vllm_batch.fleet import Fleet, Name
from vllm_batch.metrics.watchdog import WatchdogMetrics
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

REQUESTED_BY = "watchdog"


class Recovery:
    """Looks after every worker name."""

    def __init__(
        self,
        fleet: Fleet,
        pulse: Pulse,
        store: EventStore,
        restarter: Restarter,
        *,
        settings: Settings,
        clock: Clock,
        metrics: WatchdogMetrics,
    ) -> None:
        self._fleet = fleet
        self._pulse = pulse
        self._store = store
        self._restarter = restarter
        self._settings = settings
        self._clock = clock
        self._metrics = metrics

    async def check(self) -> datetime | None:
        """Do what is due; return when the next thing will be, if anything is awaited.

        Raises:
            EventStoreUnavailable: the log does not answer.
        """
        due: list[datetime] = []
        for name in list(self._fleet.names.values()):
            move = next_move(name, self._clock.now(), self._settings)
            match move:
                case Leave():
                    continue
                case Wait(until):
                    due.append(until)
                case GiveUp(restarts):
                    await self._give_up(name, restarts)
                case Restart(attempt):
                    await self._restart(name, attempt)
        return min(due, default=None)

    async def _restart(self, name: Name, attempt: int) -> None:
        worker = name.newest
        if self._pulse.beats(worker.worker_id, self._settings.lease_seconds):
            return  # it came back; its next event says so
        if not await self._restarter.reaches(worker):
            return  # not ours to start: another host's, or something else's
        claim = WorkerRestartRequested(
            worker_id=worker.worker_id, requested_by=REQUESTED_BY, now=True
        )
        if not await self._record(name, claim):
            return
        result = await self._restarter.restart(worker)
        self._metrics.restarts.labels("done" if result.done else "failed").inc()
        say = log.info if result.done else log.warning
        say(
            "worker restarted" if result.done else "worker not restarted",
            worker=name.name, attempt=attempt, detail=result.detail,
        )  # fmt: skip

    async def _give_up(self, name: Name, restarts: int) -> None:
        event = WorkerCrashLooping(
            worker_id=name.newest.worker_id,
            restarts=restarts,
            window_seconds=self._settings.crash_loop_window_seconds,
        )
        if await self._record(name, event):
            log.error("crash loop", worker=name.name, restarts=restarts)

    async def _record(self, name: Name, event: Event) -> bool:
        """Append to the newest process's events; False if it has moved on."""
        try:
            recorded = await self._store.append(event, expected=name.newest.seq)
        except Conflict:
            return False
        self._fleet.apply(recorded)
        return True
