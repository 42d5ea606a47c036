"""The orchestrator's process: campaigns for leadership, and runs all duties while it leads.

Any number of these processes may run; one leads, the others stand by. Should two lead for a moment,
the log's concurrency checks let each deed happen once.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys

import structlog

from batch_gateway.orchestrator import board_feed
from batch_gateway.orchestrator.duties import keep_running
from batch_gateway.orchestrator.expiry import Expiry
from batch_gateway.orchestrator.finalizer import Finalizer
from batch_gateway.orchestrator.jobs import Jobs
from batch_gateway.orchestrator.planner import Planner
from batch_gateway.orchestrator.reconciler import Reconciler
from batch_gateway.orchestrator.retention import Retention
from batch_gateway.orchestrator.roster import Roster
from batch_gateway.orchestrator.scheduler import Scheduler
from vllm_batch import ids, tasks
from vllm_batch.blobs import BlobStore, open_blobs
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.messaging.consumer import HintQueue
from vllm_batch.messaging.leadership import Leadership
from vllm_batch.notify import notify
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

ROLE = "orchestrator"
_STACK_FRAMES = 1_000
_RECONNECT_SECONDS = 1.0


class Lead:
    """What a leader does. Built anew for each term: nothing is carried over but the log."""

    def __init__(
        self, store: JetStreamEventStore, blobs: BlobStore, settings: Settings, clock: Clock
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._clock = clock
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret

    async def run(self) -> None:
        """Lead for ever. A duty that crashes starts again by itself; if the board does, all do."""
        await keep_running("lead", self._term, rng=self._rng)

    async def _term(self) -> None:
        store, settings, clock = self._store, self._settings, self._clock
        board = await board_feed.load(store, clock.monotonic)
        roster = Roster(board, lease_seconds=settings.lease_seconds, monotonic=clock.monotonic)
        planner = Planner(
            store, self._blobs, settings, is_known_model=lambda model: model in board.models
        )
        finalizer = Finalizer(store, self._blobs, clock)
        queues: dict[str, HintQueue] = {}

        def queue_of(model: str) -> HintQueue:
            if model not in queues:
                queues[model] = HintQueue(store.js, ids.model_key(model))
            return queues[model]

        client = store.connection.client
        duties = {
            "scheduler": Scheduler(board, roster, queue_of, settings, clock.monotonic).run,
            "reconciler": Reconciler(
                board, roster, store, client, settings=settings, monotonic=clock.monotonic
            ).run,
            "jobs": Jobs(
                board, store, planner, finalizer, settings,
                monotonic=clock.monotonic, rng=self._rng,
            ).run,
            "expiry": Expiry(board, store, clock).run,
            "retention": Retention(board, store, self._blobs, settings, clock).run,
            "projector": Projector(store, settings).run,
        }  # fmt: skip
        notify(STATUS="leading")
        store.connection.on_reconnect.add(roster.start_anew)
        try:
            await tasks.first_to_end(
                board_feed.follow(store, board),
                *(keep_running(name, duty, rng=self._rng) for name, duty in duties.items()),
            )
        finally:
            store.connection.on_reconnect.discard(roster.start_anew)
            notify(STATUS="standing by")


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    # A line nested as deeply as is allowed has to be decoded without running out of stack frames.
    sys.setrecursionlimit(settings.json_depth_max + _STACK_FRAMES)
    campaign = asyncio.create_task(_campaign(settings))
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    asked = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({campaign, asked}, return_when="FIRST_COMPLETED")
        if campaign.done():
            campaign.result()  # it never returns: raise what went wrong
        log.info("stopping")
    finally:
        await tasks.end(campaign, asked)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _campaign(settings: Settings) -> None:
    blobs = open_blobs(settings.blob_url)
    owner = ids.new("orchestrator_")
    clock = SystemClock()
    while True:
        try:
            async with jetstream.connect(settings, source=ROLE) as store:
                notify(READY=1, STATUS="standing by")
                log.info("connected", owner=owner)
                lead = Lead(store, blobs, settings, clock)
                leadership = Leadership(store.js, settings, role=ROLE, owner=owner)
                await leadership.run(lead.run)
        except EventStoreUnavailable as error:
            log.warning("waiting for the event log", error=str(error))
            await asyncio.sleep(_RECONNECT_SECONDS)
