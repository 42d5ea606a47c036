"""The orchestrator's process: campaigns for leadership, and runs all duties while it leads.

Any number of these processes may run; one leads, the others stand by. Should two lead for a moment,
the log's concurrency checks let each deed happen once.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable

import structlog

from batch_gateway.orchestrator import board_feed, spool
from batch_gateway.orchestrator.budgets import Budgets
from batch_gateway.orchestrator.duties import keep_running
from batch_gateway.orchestrator.expiry import Expiry
from batch_gateway.orchestrator.finalizer import Finalizer
from batch_gateway.orchestrator.jobs import Jobs
from batch_gateway.orchestrator.measuring import Measuring
from batch_gateway.orchestrator.model_names import BoardNames
from batch_gateway.orchestrator.placement import Placement
from batch_gateway.orchestrator.planner import Planner
from batch_gateway.orchestrator.purge import Purge
from batch_gateway.orchestrator.reconciler import Reconciler
from batch_gateway.orchestrator.retention import Retention
from batch_gateway.orchestrator.roster import Roster
from batch_gateway.orchestrator.scheduler import Scheduler
from batch_gateway.webhooks.public_http import AllowedAddresses, PublicHttp
from batch_gateway.webhooks.sender import Sender
from vllm_batch import ids, process, tasks
from vllm_batch.blobs import BlobStore, open_blobs
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.messaging.consumer import HintQueue
from vllm_batch.messaging.leadership import Leadership
from vllm_batch.metrics.exposition import Exposition, exposed
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
        self,
        store: JetStreamEventStore,
        blobs: BlobStore,
        settings: Settings,
        clock: Clock,
        measuring: Measuring | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._clock = clock
        self._measuring = measuring or Measuring(Exposition(ROLE))
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret

    async def run(self) -> None:
        """Lead for ever. A duty that crashes starts again by itself; if the board does, all do."""
        crashed = self._measuring.duties.note_failure
        await keep_running("lead", self._term, rng=self._rng, on_crash=crashed)

    async def _term(self) -> None:
        store, settings, clock = self._store, self._settings, self._clock
        board = await board_feed.load(store, clock.monotonic)
        roster = Roster(board, lease_seconds=settings.lease_seconds, monotonic=clock.monotonic)
        planner = Planner(store, self._blobs, settings, BoardNames(board))
        finalizer = Finalizer(
            store, self._blobs, clock, spool_directory=spool.directory_of(settings)
        )
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
                clock=clock, rng=self._rng, metrics=self._measuring.orchestrator,
            ).run,
            "expiry": Expiry(board, store, clock).run,
            "placement": Placement(board, roster, client, settings, clock).run,
            "retention": Retention(board, store, self._blobs, settings, clock).run,
            "projector": Projector(store, settings).run,
            "webhooks": self._deliver,
            "purge": Purge(store, self._blobs).run,
            "budgets": Budgets(store, settings, clock).run,
        }  # fmt: skip
        notify(STATUS="leading")
        store.connection.on_reconnect.add(roster.start_anew)
        try:
            with self._measuring.leading(board, roster, store, clock):
                await tasks.first_to_end(
                    board_feed.follow(store, board),
                    *(self._keep_running(name, duty) for name, duty in duties.items()),
                )
        finally:
            store.connection.on_reconnect.discard(roster.start_anew)
            notify(STATUS="standing by")

    async def _keep_running(self, name: str, duty: Callable[[], Awaitable[None]]) -> None:
        crashed = self._measuring.duties.note_failure
        await keep_running(name, duty, rng=self._rng, on_crash=crashed)

    async def _deliver(self) -> None:
        settings = self._settings
        allowed = AllowedAddresses(settings.webhook_networks_allowed)
        http = PublicHttp(allowed, settings.webhook_timeout_seconds)
        try:
            metrics = self._measuring.webhooks
            sender = Sender(self._store, settings, self._clock, http.post, metrics)
            with self._measuring.delivering(sender):
                await sender.run()
        finally:
            await http.close()


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    # A line nested as deeply as is allowed has to be decoded without running out of stack frames.
    sys.setrecursionlimit(settings.json_depth_max + _STACK_FRAMES)
    async with exposed(settings, service=ROLE) as exposition:
        await process.until_told(_campaign(settings, Measuring(exposition)))


async def _campaign(settings: Settings, measuring: Measuring) -> None:
    blobs = open_blobs(settings.blob_url)
    owner = ids.new("orchestrator_")
    clock = SystemClock()
    while True:
        try:
            async with jetstream.connect(
                settings, source=ROLE, metrics=measuring.event_log
            ) as store:
                notify(READY=1, STATUS="standing by")
                log.info("connected", owner=owner)
                lead = Lead(store, blobs, settings, clock, measuring)
                leadership = Leadership(store.js, settings, role=ROLE, owner=owner)
                with measuring.connected(store):
                    await leadership.run(lead.run)
        except EventStoreUnavailable as error:
            log.warning("waiting for the event log", error=str(error))
            await asyncio.sleep(_RECONNECT_SECONDS)
