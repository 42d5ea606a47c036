"""Takes leases away from workers that are gone, so that their chunks are offered again at once.

Listens to heartbeats; records ``worker.lost`` and ``chunk.released``. A worker is gone when it said
so, when its successor of the same name has started, or when it was silent for ``lease_seconds``
while it could have been heard. Whoever was taken for lost by mistake finds its epoch over at its
next append: that is the fencing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from batch_gateway.orchestrator.board import Board, ChunkView, WorkerView
from batch_gateway.orchestrator.roster import Roster
from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.errors import Conflict, LeaseLost
from vllm_batch.event_store import EventStore
from vllm_batch.events import WorkerLost
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)


class _Load(msgspec.Struct):
    """What counts here of a `Heartbeat`."""

    online_in_flight: int = 0


_ROUND_TRIP_SECONDS = 1


class Reconciler:
    """Compares the leases with who is alive, each second and whenever a worker's state changes."""

    def __init__(
        self,
        board: Board,
        roster: Roster,
        store: EventStore,
        client: Client,
        *,
        settings: Settings,
        monotonic: Callable[[], float],
    ) -> None:
        self._board = board
        self._roster = roster
        self._store = store
        self._client = client
        self._every_seconds = settings.reconcile_seconds
        self._pause_seconds_max = max(3 * settings.reconcile_seconds, settings.lease_seconds / 2)
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._deaf = False

    async def run(self) -> None:
        """Reconcile for ever."""
        watch = self._board.watch_workers()
        subscription = await self._client.subscribe(subjects.ALL_HEARTBEATS, cb=self._hear)
        try:
            while True:
                await self.reconcile()
                await watch.wait(self._every_seconds)
        finally:
            self._board.unwatch(watch)
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def _hear(self, message: Msg) -> None:
        online = 0
        with contextlib.suppress(msgspec.DecodeError):  # of another release: it lives all the same
            online = msgspec.json.decode(message.data, type=_Load).online_in_flight
        self._roster.hear(WorkerId(message.subject.rpartition(".")[2]), online_in_flight=online)

    async def reconcile(self) -> None:
        """Record who is lost and release what they held."""
        self._roster.sync()
        now = self._monotonic()
        if now - self._looked_at > self._pause_seconds_max:
            self._roster.start_anew()  # it is us who were frozen
        self._looked_at = now
        if (self._deaf or self._silent()) and not await self._listens():
            return
        for view in self._silent():
            await self._lose(view)
        over = [
            (view, chunk)
            for view in self._board.workers.values()
            for chunk in self._held_by(view)
            if self._is_over(view, chunk)
        ]
        if over:
            await asyncio.gather(*(self._release(view.worker_id, chunk) for view, chunk in over))

    async def _listens(self) -> bool:
        """Tell whether silence means anything: what was sent to us by now has been heard."""
        try:
            await self._client.flush(_ROUND_TRIP_SECONDS)
        except (nats.errors.Error, TimeoutError, ConnectionError):
            self._deaf = True
            return False
        if self._deaf:
            self._deaf = False
            self._roster.start_anew()
        await asyncio.sleep(0)  # the callbacks of what came before the answer run now
        return True

    def _silent(self) -> list[WorkerView]:
        return [
            view
            for view in self._board.workers.values()
            if view.ended_seq is None and not self._roster.is_alive(view)
        ]

    async def _lose(self, view: WorkerView) -> None:
        if view.seq == 0:
            return  # it never announced itself; its leases are released all the same
        reason = "replaced" if view.gone else "silent"
        event = WorkerLost(worker_id=view.worker_id, reason=reason)  # type: ignore[arg-type]
        try:
            recorded = await self._store.append(event, expected=view.seq)
        except Conflict:
            return  # it has just said something, or another leader was faster
        log.warning("worker lost", worker=view.worker_id, name=view.name, reason=reason)
        await self._board.reached(recorded.seq)

    def _held_by(self, view: WorkerView) -> list[ChunkView]:
        jobs = self._board.jobs
        return [jobs[job_id].chunks[number] for job_id, number in view.leases if job_id in jobs]

    def _is_over(self, view: WorkerView, chunk: ChunkView) -> bool:
        """A lease is over with its owner. One that is younger than the owner's reported end shows
        that the owner came back: then its heartbeats decide."""
        if view.ended_seq is not None and chunk.leased_seq < view.ended_seq:
            return True
        return not self._roster.is_alive(view)

    async def _release(self, worker_id: WorkerId, view: ChunkView) -> None:
        planned, epoch = view.chunk.planned, view.chunk.epoch
        try:
            event = chunk_rules.decide(view.chunk, chunk_rules.Release(epoch, "worker_lost"))
            await self._store.append(event, expected=view.seq)
        except (Conflict, LeaseLost) as error:
            log.debug("not released", job=planned.job_id, chunk=planned.chunk, why=str(error))
            return
        log.info(
            "chunk released",
            job=planned.job_id, chunk=planned.chunk, epoch=epoch, worker=worker_id,
        )  # fmt: skip
