"""Every worker there ever was, folded from its events: who lives, who was lost, who keeps dying.

Reads ``worker.>`` of the event log; writes nothing. The watchdog, ``worker status`` and the admin
API see the same workers this way. One process of a worker is a `WorkerView`; a `Name` outlives
its processes and has their history.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store import EventStore
from vllm_batch.events import (
    Recorded,
    WorkerCleared,
    WorkerCrashLooping,
    WorkerLost,
    WorkerReady,
    WorkerRestartRequested,
    WorkerStarted,
    WorkerStopped,
)
from vllm_batch.events.worker import WorkerEvent
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects

ON_PURPOSE = frozenset({"drained"})
"""Reasons of ``worker.stopped`` after which nobody misses the worker."""

_RETRY_SECONDS = 1.0
FIXED_ENGINES = frozenset({"openai"})
"""Engines that serve what their own server serves: their workers are told no models."""

State = Literal["started", "ready", "stopped", "lost"]


@dataclass(slots=True)
class WorkerView:
    """One process. ``seq`` is the last of its events; ``state`` what they say, not its pulse.

    ``restart_asked_at``: when somebody asked for a restart of this very process, each time.
    """

    worker_id: WorkerId
    name: str
    host: str
    pid: int
    engine: str
    version: str
    started_at: datetime
    seq: int
    state: State = "started"
    models: list[str] = field(default_factory=list)
    in_flight_max: int = 0
    reason: str | None = None
    ended_at: datetime | None = None
    replaced: bool = False
    restart_asked_at: list[datetime] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        """Whether it ended without having been meant to, and nobody has taken its place."""
        if self.replaced or self.ended_at is None:
            return False
        return self.state == "lost" or self.reason not in ON_PURPOSE or bool(self.restart_asked_at)


@dataclass(slots=True)
class Name:
    """What is known of all processes of one name. ``deaths``: when each ended unasked."""

    name: str
    newest: WorkerView
    deaths: dict[WorkerId, datetime] = field(default_factory=dict)
    crash_looping: bool = False

    def deaths_since(self, time: datetime) -> int:
        """Return how many of its processes died after ``time``."""
        return sum(died > time for died in self.deaths.values())


class Fleet:
    """All workers by id and by name. ``position``: the last sequence that was folded in."""

    def __init__(self) -> None:
        self.workers: dict[WorkerId, WorkerView] = {}
        self.names: dict[str, Name] = {}
        self.position = 0

    def find(self, worker: str) -> WorkerView | None:
        """Return a worker by its id, or the newest process of a name."""
        if worker in self.names:
            return self.names[worker].newest
        return self.workers.get(WorkerId(worker))

    def processes(self, worker: str) -> list[WorkerId]:
        """Return the ids of all processes of a name, the oldest first, or a single one's."""
        if worker not in self.names:
            return [WorkerId(worker)]
        return [view.worker_id for view in self.workers.values() if view.name == worker]

    def is_of(self, worker_id: WorkerId, worker: str) -> bool | None:
        """Tell whether a process is, or is of, ``worker``; None: the log has not said yet."""
        view = self.workers.get(worker_id)
        if view is None:
            return True if worker_id == worker else None
        return worker in {view.name, view.worker_id}

    def serving(self, model: str) -> list[WorkerView]:
        """Return the workers that the log has as ready for ``model``."""
        return [
            view
            for view in self.workers.values()
            if view.state == "ready" and model in view.models and not view.replaced
        ]

    def that_served(self, model: str) -> list[Name]:
        """Return the names of which a process ever served ``model``."""
        names = {view.name for view in self.workers.values() if model in view.models}
        return [self.names[name] for name in sorted(names)]

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; one that is in already changes nothing."""
        event = recorded.event
        self.position = max(self.position, recorded.seq)
        if isinstance(event, WorkerStarted):
            if event.worker_id not in self.workers:
                self._start(event, recorded)
            return
        if not isinstance(event, WorkerEvent):
            return
        view = self.workers.get(event.worker_id)
        if view is None or recorded.seq <= view.seq:
            return
        view.seq = recorded.seq
        self._change(view, event, recorded.time)

    def _start(self, event: WorkerStarted, recorded: Recorded) -> None:
        view = WorkerView(
            event.worker_id, event.name, event.host, event.pid, event.engine, event.version,
            recorded.time, recorded.seq,
        )  # fmt: skip
        self.workers[event.worker_id] = view
        known = self.names.get(event.name)
        if known is None:
            self.names[event.name] = Name(event.name, view)
            return
        older, known.newest = known.newest, view
        if older.ended_at is None:  # it never said that it ends
            known.deaths.setdefault(older.worker_id, recorded.time)
        older.replaced = True
        if older.version != view.version:
            known.deaths.clear()
            known.crash_looping = False

    def _change(self, view: WorkerView, event: WorkerEvent, time: datetime) -> None:
        name = self.names[view.name]
        match event:
            case WorkerReady(models=models, in_flight_max=in_flight_max):
                view.models, view.in_flight_max = models, in_flight_max
                view.state, view.reason, view.ended_at = "ready", None, None
                name.deaths.pop(view.worker_id, None)  # it was taken for lost
            case WorkerStopped(reason=reason):
                view.state, view.reason, view.ended_at = "stopped", reason, time
                if reason not in ON_PURPOSE:
                    name.deaths[view.worker_id] = time
                else:
                    name.deaths.pop(view.worker_id, None)
            case WorkerLost(reason=reason):
                view.state, view.reason = "lost", reason
                view.ended_at = view.ended_at or time
                name.deaths.setdefault(view.worker_id, time)
            case WorkerRestartRequested():
                view.restart_asked_at.append(time)
            case WorkerCrashLooping():
                name.crash_looping = True
            case WorkerCleared():
                name.crash_looping = False
                name.deaths.clear()
                view.restart_asked_at.clear()


async def load(store: EventStore) -> Fleet:
    """Return the fleet as the log has it now.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    fleet = Fleet()
    async for batch in store.read(subjects.ALL_WORKERS):
        for recorded in batch:
            fleet.apply(recorded)
    return fleet


async def follow(fleet: Fleet, store: EventStore) -> None:
    """Keep ``fleet`` as the log has it, for ever; while the log is away it stays as it is."""
    while True:
        with suppress(EventStoreUnavailable):
            async for batch in store.follow([subjects.ALL_WORKERS], after=fleet.position):
                for recorded in batch:
                    fleet.apply(recorded)
        await asyncio.sleep(_RETRY_SECONDS)
