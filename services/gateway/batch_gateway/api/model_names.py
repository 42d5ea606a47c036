"""What the model of an online request means, and who serves it just now.

Names and aliases are folded from ``model.>`` and ``worker.ready``; heartbeats tell who lives.
Nothing here needs Postgres.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from vllm_batch import model_registry, tasks
from vllm_batch.clock import Clock
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.folds import keep_up
from vllm_batch.events import Recorded, WorkerReady
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects, telemetry
from vllm_batch.model_registry import ModelRegistry

log = structlog.get_logger(__name__)


class _Announced:
    """Every model that a worker ever said it serves."""

    def __init__(self) -> None:
        self.position = 0
        self.names: set[str] = set()

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in."""
        self.position = max(self.position, recorded.seq)
        if isinstance(recorded.event, WorkerReady):
            self.names.update(recorded.event.models)


class ModelNames:
    """Names as the log has them; workers as they said of themselves within ``lease_seconds``."""

    def __init__(self, client: Client, clock: Clock, lease_seconds: float) -> None:
        self._client = client
        self._clock = clock
        self._lease = lease_seconds
        self._registry = ModelRegistry()
        self._announced = _Announced()
        # With the time of their arrival here: the clocks of other machines count for nothing.
        self._beats: dict[WorkerId, tuple[Heartbeat, float]] = {}

    @asynccontextmanager
    async def following(self, store: EventStore) -> AsyncIterator[None]:
        """Know what there is now, and keep up while the context lasts."""
        self._registry = await model_registry.load(store)
        ready = subjects.every(WorkerReady)
        async for batch in store.read(ready):
            for recorded in batch:
                self._announced.apply(recorded)
        beats = await self._client.subscribe(subjects.ALL_HEARTBEATS, cb=self._heard)
        try:
            last = await telemetry.last_heartbeats(self._client)
        except EventStoreUnavailable as error:
            log.info("workers are known when they send a heartbeat", error=str(error))
        else:
            now, arrived = self._clock.now(), self._clock.monotonic()
            self._beats = {
                worker: (beat, arrived - max(0.0, (now - taken).total_seconds()))
                for worker, (beat, taken) in last.items()
            } | self._beats
        duties = [
            asyncio.create_task(keep_up(store, subjects.ALL_MODELS, self._registry)),
            asyncio.create_task(keep_up(store, ready, self._announced)),
        ]
        try:
            yield
        finally:
            await tasks.end(*duties)
            if not self._client.is_closed:
                await beats.unsubscribe()

    def resolve(self, name: str) -> str | None:
        """Return the name of the model that is meant; None: nobody ever heard of it, or it was
        retired."""
        if (registered := self._registry.resolve(name)) is not None:
            return registered
        if self._registry.find(name) is not None:
            return None
        return name if name in self._announced.names or name in self.served() else None

    def serving(self, model: str) -> list[WorkerId]:
        """Return the workers that have the model ready, those first of which the smallest share is
        taken by online work; of equals, the larger one."""
        beats = [beat for beat in self._live() if model in beat.models]
        return [beat.worker_id for beat in sorted(beats, key=_fullness)]

    def served(self) -> list[str]:
        """Return the models that some worker has ready."""
        return sorted({model for beat in self._live() for model in beat.models})

    def _live(self) -> list[Heartbeat]:
        oldest = self._clock.monotonic() - self._lease
        beats = self._beats.values()
        return [beat for beat, at in beats if beat.state == "ready" and at > oldest]

    async def _heard(self, message: Msg) -> None:
        try:
            beat = msgspec.json.decode(message.data, type=Heartbeat)
        except msgspec.DecodeError:
            return  # of another release
        now = self._clock.monotonic()
        self._beats[beat.worker_id] = (beat, now)
        if beat.state != "ready":
            self._beats = {k: v for k, v in self._beats.items() if v[1] > now - self._lease}


def _fullness(beat: Heartbeat) -> tuple[float, int]:
    return beat.online_in_flight / max(1, beat.max_num_seqs), -beat.max_num_seqs
