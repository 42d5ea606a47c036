"""What happens now, once per process and shared by all pages: one follower of the event log, one
listener for heartbeats.

Pages never ask on a timer: they `watch` the nouns they show and are woken when such an event came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from batch_admin.open_batches import OpenBatches
from batch_admin.rates import STEP_SECONDS, WINDOW_SECONDS, Rates
from vllm_batch import admin_users, fleet, model_registry, training_runs
from vllm_batch.admin_users import AdminUsers
from vllm_batch.clock import Clock
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store import EventStore, starts
from vllm_batch.events import ChunkCompleted, ChunkProgressed, Recorded, WorkerStarted
from vllm_batch.fleet import Fleet
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects, telemetry
from vllm_batch.model_registry import ModelRegistry
from vllm_batch.training_runs import TrainingRuns

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger(__name__)

RECENT_EVENTS = 1000
PULSE_POINTS = 240
ENDED_PULSE_SECONDS = 3600.0
"""How long the last heartbeat of a process that has ended is remembered."""
HEARTBEATS = "heartbeat"
_RETRY_SECONDS = 1.0
_ALL_EVENTS = ">"


class Pulse:
    """A worker's heartbeats: the last one, when it came, and a history for charts."""

    def __init__(self, beat: Heartbeat, heard_at: datetime) -> None:
        self.last = beat
        self.heard_at = heard_at
        self.history: deque[tuple[float, float, float | None, float | None]] = deque(
            maxlen=PULSE_POINTS
        )
        self.hear(beat, heard_at)

    def hear(self, beat: Heartbeat, heard_at: datetime) -> None:
        """Take a heartbeat in: (Unix seconds, tokens/s, GPU memory share, GPU use), 0 to 1."""
        self.last, self.heard_at = beat, heard_at
        self.history.append(
            (
                heard_at.timestamp(),
                beat.output_tokens_per_second,
                gpu_memory_share(beat),
                gpu_use_share(beat),
            )
        )


def gpu_memory_share(beat: Heartbeat) -> float | None:
    """Return used / total memory of a worker's GPUs; None where the driver does not say."""
    total = sum(gpu.memory_total_bytes or 0 for gpu in beat.gpus)
    return sum(gpu.memory_used_bytes or 0 for gpu in beat.gpus) / total if total else None


def gpu_use_share(beat: Heartbeat) -> float | None:
    """Return the mean utilisation of a worker's GPUs; None where the driver does not say."""
    known = [g.utilization_percent for g in beat.gpus if g.utilization_percent is not None]
    return sum(known) / len(known) / 100 if known else None


def noun_of(recorded: Recorded) -> str:
    """Return what an event is about: job, chunk, worker …"""
    return recorded.event.TYPE.partition(".")[0]


class Watch:
    """Wakes a page when something came that it shows. ``events``: those since the last look, the
    newest at most."""

    def __init__(self, nouns: Iterable[str]) -> None:
        self.nouns = frozenset(nouns)
        self._woken = asyncio.Event()
        self._events: deque[Recorded] = deque(maxlen=RECENT_EVENTS)

    def notice(self, recorded: Recorded | None) -> None:
        """Take note of an event (None: a heartbeat)."""
        if recorded is not None:
            self._events.append(recorded)
        self._woken.set()

    async def wait(self, timeout_seconds: float | None = None) -> list[Recorded]:
        """Wait until there is something new, but not longer than that; return the events."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        self._woken.clear()
        events = list(self._events)
        self._events.clear()
        return events


class Live:
    """See the module. ``load``, then ``run`` for ever."""

    def __init__(self, store: EventStore, client: Client, clock: Clock) -> None:
        self.users: AdminUsers = AdminUsers()
        self.fleet: Fleet = Fleet()
        self.models = ModelRegistry()
        self.runs = TrainingRuns()
        self.batches = OpenBatches()
        self.rates = Rates()
        self.pulses: dict[WorkerId, Pulse] = {}
        self.recent: deque[Recorded] = deque(maxlen=RECENT_EVENTS)
        self.position = 0
        self._store = store
        self._client = client
        self._clock = clock
        self._watches: set[Watch] = set()

    async def load(self) -> None:
        """Take in what the log and telemetry have. Raises EventStoreUnavailable."""
        store, now = self._store, self._clock.now()
        self.position = await store.last_sequence()
        self.users = await admin_users.load(store)
        self.fleet = await fleet.load(store)
        self.models = await model_registry.load(store)
        self.runs = await training_runs.load(store)
        await self.batches.load(store)
        await self._load_pulses()
        hour_ago = await starts.sequence_before(store, now - timedelta(seconds=WINDOW_SECONDS))
        for cls in (ChunkProgressed, ChunkCompleted):
            async for batch in store.read(subjects.every(cls), after=hour_ago):
                for recorded in batch:
                    if recorded.seq <= self.position:
                        self.rates.apply(recorded)
        newest = max(0, self.position - RECENT_EVENTS)
        async for batch in store.read(_ALL_EVENTS, after=newest):
            self.recent.extend(recorded for recorded in batch if recorded.seq <= self.position)

    async def _load_pulses(self) -> None:
        try:
            found = await telemetry.last_heartbeats(self._client)
        except EventStoreUnavailable as error:  # busy with log lines; the next beats come soon
            log.warning("no heartbeats so far", error=str(error))
            return
        for worker_id, (beat, heard_at) in found.items():
            self.pulses[worker_id] = Pulse(beat, heard_at)
        self._forget_pulses()

    async def run(self) -> None:
        """Follow for ever."""
        subscription = await self._client.subscribe(subjects.ALL_HEARTBEATS, cb=self._hear)
        try:
            while True:
                try:
                    async for batch in self._store.follow([_ALL_EVENTS], after=self.position):
                        for recorded in batch:
                            self._apply(recorded)
                except EventStoreUnavailable as error:
                    log.warning("waiting for the event log", error=str(error))
                except Exception:  # the outermost loop of this duty
                    log.exception("following events failed; starting anew", after=self.position)
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            if not self._client.is_closed:
                await subscription.unsubscribe()

    @contextmanager
    def watch(self, nouns: Iterable[str], *, after: int) -> Iterator[Watch]:
        """Yield a watch over the events of ``nouns`` that came after sequence ``after``;
        HEARTBEATS is one, too."""
        watch = Watch(nouns)
        for recorded in self.recent:
            if recorded.seq > after and noun_of(recorded) in watch.nouns:
                watch.notice(recorded)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def pace(self) -> tuple[float, float]:
        """Return requests/s and output tokens/s now, as the live workers say."""
        beats = [pulse.last for pulse in self.pulses.values() if self.is_fresh(pulse)]
        return (
            sum(beat.requests_per_second for beat in beats),
            sum(beat.output_tokens_per_second for beat in beats),
        )

    def is_fresh(self, pulse: Pulse) -> bool:
        """Tell whether a heartbeat is recent enough to say something of now."""
        return (self._clock.now() - pulse.heard_at).total_seconds() < STEP_SECONDS

    def _apply(self, recorded: Recorded) -> None:
        self.position = recorded.seq
        self.users.apply(recorded)
        self.fleet.apply(recorded)
        if isinstance(recorded.event, WorkerStarted):
            self._forget_pulses()
        self.models.apply(recorded)
        self.runs.apply(recorded)
        self.batches.apply(recorded)
        self.rates.apply(recorded)
        self.recent.append(recorded)
        self._wake(noun_of(recorded), recorded)

    async def _hear(self, message: Msg) -> None:
        try:
            beat = msgspec.json.decode(message.data, type=Heartbeat)
        except msgspec.DecodeError:
            return  # of another release
        now = self._clock.now()
        if self._has_successor(beat.worker_id):
            return
        if pulse := self.pulses.get(beat.worker_id):
            pulse.hear(beat, now)
        else:
            self.pulses[beat.worker_id] = Pulse(beat, now)
        self._wake(HEARTBEATS, None)

    def _forget_pulses(self) -> None:
        """Drop those of processes that have a successor, and of those that ended long ago: each
        has a history, and processes come and go without end."""
        now = self._clock.now()
        for worker_id, pulse in list(self.pulses.items()):
            view = self.fleet.workers.get(worker_id)
            has_ended = view is None or view.ended_at is not None
            is_old = (now - pulse.heard_at).total_seconds() > ENDED_PULSE_SECONDS
            if self._has_successor(worker_id) or (has_ended and is_old):
                del self.pulses[worker_id]

    def _has_successor(self, worker_id: WorkerId) -> bool:
        view = self.fleet.workers.get(worker_id)
        return view is not None and view.replaced

    def _wake(self, noun: str, recorded: Recorded | None) -> None:
        for watch in self._watches:
            if noun in watch.nouns:
                watch.notice(recorded)
