"""The worker's own events: started, ready, stopped; and ready again where it was taken for lost."""

from __future__ import annotations

import asyncio

import structlog

from vllm_batch import ids
from vllm_batch.errors import Conflict, EventStoreError
from vllm_batch.event_store.protocol import EventStore
from vllm_batch.events import (
    Event,
    Recorded,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorkerStopped,
)
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 5.0


class Presence:
    """What the log says of this worker. Appends are tried until the log takes them."""

    def __init__(self, store: EventStore, worker_id: WorkerId) -> None:
        self._store = store
        self._worker_id = worker_id
        self._seq = 0
        self._ready: WorkerReady | None = None

    async def started(self, *, name: str, host: str, pid: int, engine: str, version: str) -> None:
        """Say that this process runs; older ones of its name are gone."""
        await self._append(
            WorkerStarted(
                worker_id=self._worker_id,
                name=name,
                host=host,
                pid=pid,
                engine=engine,
                version=version,
            )
        )

    async def ready(self, models: list[str], in_flight_max: int) -> None:
        """Say what may be asked of it."""
        self._ready = WorkerReady(
            worker_id=self._worker_id, models=models, in_flight_max=in_flight_max
        )
        await self._append(self._ready)

    async def stopped(self, reason: str) -> None:
        """Say that it ends."""
        await self._append(WorkerStopped(worker_id=self._worker_id, reason=reason))

    async def note(self, event: Event) -> None:
        """Record something else that happened to it."""
        await self._append(event)

    async def deny_loss(self) -> None:
        """Say again that it is ready, if the log has it as lost (it was frozen or cut off)."""
        last = await self._last(WorkerLost, WorkerReady)
        if last is not None and isinstance(last.event, WorkerLost) and self._ready is not None:
            log.warning("was taken for lost: ready again")
            await self._append(self._ready)

    async def _append(self, event: Event) -> None:
        event_id = ids.new_event_id()
        pause = RETRY_SECONDS
        while True:
            try:
                recorded = await self._store.append(event, expected=self._seq, event_id=event_id)
            except Conflict:
                last = await self._last()
                self._seq = last.seq if last else 0
                continue
            except EventStoreError as error:
                log.warning("not announced yet", type=event.TYPE, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)
                continue
            self._seq = recorded.seq
            return

    async def _last(self, *kinds: type[Event]) -> Recorded | None:
        """Return the last event of ``kinds``, or of all, and learn the last sequence."""
        last: Recorded | None = None
        async for batch in self._store.read(subjects.aggregate("worker", self._worker_id)):
            self._seq = batch[-1].seq
            for recorded in batch:
                if not kinds or isinstance(recorded.event, kinds):
                    last = recorded
        return last
