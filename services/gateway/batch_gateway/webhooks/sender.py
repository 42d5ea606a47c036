"""Delivers: schedules what endpoints want to know, tries, tries again, gives up.

Follows the ends of batches and ``webhook.>``; writes ``webhook.scheduled`` before the first try and
an event after each, so whoever leads next goes on where the last leader stopped. A crash between a
try and its event repeats the try: receivers see the same ``webhook-id`` twice.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
import structlog

from batch_gateway.webhooks import ledger as ledgers
from batch_gateway.webhooks import signing
from batch_gateway.webhooks.ledger import DeliveryKey, Ledger
from batch_gateway.webhooks.public_http import Unreachable
from vllm_batch import ids, tasks
from vllm_batch.aggregates import webhook as rules
from vllm_batch.aggregates.webhook import EVENT_TYPES, Delivery, Endpoint
from vllm_batch.clock import Clock
from vllm_batch.errors import AlreadyDone, Conflict
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import Event, JobSubmitted, Recorded
from vllm_batch.events.webhook import (
    DisableReason,
    WebhookAttemptFailed,
    WebhookDelivered,
    WebhookEndpointDisabled,
    WebhookScheduled,
)
from vllm_batch.ids import JobId, ProjectId
from vllm_batch.messaging import subjects
from vllm_batch.metrics.orchestrator import WebhookMetrics
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0
GONE = 410
PER_ENDPOINT_MAX = 4
Post = Callable[[str, str, dict[str, str]], Awaitable[int]]


def body_of(delivery: Delivery) -> str:
    """Return what is posted, the same for every try: OpenAI's webhook event."""
    return msgspec.json.encode(
        {
            "id": delivery.delivery_id,
            "object": "event",
            "created_at": int(delivery.created_at.timestamp()),
            "type": delivery.event_type,
            "data": {"id": delivery.job_id},
        }
    ).decode()


def cloud_event_headers(delivery: Delivery) -> dict[str, str]:
    """Return the attributes that events have over NATS and SSE, as CloudEvents puts them in HTTP.

    Source: CloudEvents 1.0, HTTP protocol binding, binary content mode.
    """
    return {
        "ce-specversion": "1.0",
        "ce-id": delivery.delivery_id,
        "ce-source": "orchestrator",
        "ce-type": delivery.event_type,
        "ce-subject": delivery.job_id,
        "ce-time": delivery.created_at.isoformat(),
    }


class Sender:
    """The duty. ``post`` sends a body to a URL and returns the status."""

    def __init__(
        self,
        store: EventStore,
        settings: Settings,
        clock: Clock,
        post: Post,
        metrics: WebhookMetrics,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._post = post
        self._metrics = metrics
        self._ledger = Ledger()
        self._due: list[tuple[float, DeliveryKey]] = []
        self._more = asyncio.Event()
        self._running: dict[DeliveryKey, asyncio.Task[None]] = {}
        self._recorded: dict[DeliveryKey, int] = {}
        """Sequence of what was recorded last; until it comes back the ledger is behind."""

    async def run(self) -> None:
        """Deliver for ever."""
        self._ledger = await ledgers.load(self._store)
        self._due, self._running, self._recorded = [], {}, {}
        for key in self._ledger.deliveries:
            self._queue(key)
        try:
            await tasks.first_to_end(self._follow(), self._try_for_ever())
        finally:
            await tasks.end(*self._running.values())

    def measure(self) -> None:
        """Bring the gauges up to date."""
        waiting = sum(one.status == "pending" for one in self._ledger.deliveries.values())
        self._metrics.pending.set(waiting)
        living = [one for one in self._ledger.endpoints.values() if not one.deleted]
        disabled = sum(one.disabled is not None for one in living)
        self._metrics.endpoints.labels("enabled").set(len(living) - disabled)
        self._metrics.endpoints.labels("disabled").set(disabled)

    def _queue(self, key: DeliveryKey) -> None:
        delivery = self._ledger.deliveries.get(key)
        if delivery is not None and delivery.status == "pending":
            heapq.heappush(self._due, (delivery.due.timestamp(), key))
            self._more.set()

    async def _follow(self) -> None:
        """One follower for both, in the log's order: an endpoint is known before what ends after
        it was made."""
        ends = [f"{kind}.>" for kind in EVENT_TYPES]
        after = self._ledger.unscheduled_after()
        async for batch in self._store.follow([subjects.ALL_WEBHOOKS, *ends], after=after):
            for recorded in batch:
                if recorded.event.TYPE in EVENT_TYPES:
                    await self._schedule(recorded)
                else:
                    self._take_in(recorded)

    def _take_in(self, recorded: Recorded) -> None:
        self._ledger.apply(recorded)
        tokens = recorded.event.aggregate_id()
        if len(tokens) == 2:
            self._queue((tokens[0], tokens[1]))
            return
        for key in self._ledger.deliveries:  # the endpoint may have been enabled
            if key[0] == tokens[0]:
                self._queue(key)

    async def _schedule(self, recorded: Recorded) -> None:
        """Record a delivery for every endpoint that wants to know of a batch's end."""
        event_type = EVENT_TYPES[recorded.event.TYPE]
        job_id = JobId(recorded.event.aggregate_id()[0])
        if not self._ledger.endpoints:
            return
        project = await self._project_of(job_id)
        for endpoint in self._ledger.wanting(project, event_type, recorded.seq):
            delivery_id = ids.derived("evt_", endpoint.endpoint_id, recorded.id)
            scheduled = WebhookScheduled(
                endpoint_id=endpoint.endpoint_id, delivery_id=delivery_id,
                event_type=event_type, job_id=job_id, created_at=recorded.time,
                cause=recorded.seq,
            )  # fmt: skip
            try:
                await self._store.append(scheduled, expected=0)
            except Conflict:
                continue  # an earlier leader did it

    async def _project_of(self, job_id: JobId) -> ProjectId | None:
        def submitted(state: ProjectId | None, recorded: Recorded) -> ProjectId | None:
            event = recorded.event
            return event.project if isinstance(event, JobSubmitted) else state

        project, _ = await fold(self._store, subjects.job(job_id), submitted)
        return project

    async def _try_for_ever(self) -> None:
        while True:
            self._end_tries()
            now = self._clock.now().timestamp()
            busy: list[tuple[float, DeliveryKey]] = []
            while self._due and self._due[0][0] <= now and not self._full:
                due, key = heapq.heappop(self._due)
                ready = self._ready(key, now)
                if ready is None:
                    continue
                if self._crowded(ready[0]):
                    busy.append((due, key))
                    continue
                self._running[key] = asyncio.create_task(self._try(*ready))
            await self._wait(now)
            for entry in busy:
                heapq.heappush(self._due, entry)

    def _end_tries(self) -> None:
        """Forget the tries that are over; raise what went wrong in one."""
        for key, task in list(self._running.items()):
            if task.done():
                del self._running[key]
                task.result()

    @property
    def _full(self) -> bool:
        return len(self._running) >= self._settings.webhook_in_flight_max

    def _crowded(self, endpoint: Endpoint) -> bool:
        """Tell whether an endpoint or its project has its share of the tries that run: endpoints
        that never answer must not hold up those of others."""
        running = [self._ledger.endpoints[endpoint_id] for endpoint_id, _ in self._running]
        of_endpoint = sum(other.endpoint_id == endpoint.endpoint_id for other in running)
        of_project = sum(other.project == endpoint.project for other in running)
        share = max(1, self._settings.webhook_in_flight_max // 2)
        return of_endpoint >= PER_ENDPOINT_MAX or of_project >= share

    def _ready(self, key: DeliveryKey, now: float) -> tuple[Endpoint, Delivery] | None:
        """Return what to try, unless that is under way, done, or not to be done."""
        delivery = self._ledger.deliveries.get(key)
        if delivery is None or delivery.status != "pending" or delivery.due.timestamp() > now:
            return None
        if key in self._running or self._ledger.position < self._recorded.get(key, 0):
            return None
        endpoint = self._ledger.endpoints[key[0]]
        return None if endpoint.deleted or endpoint.disabled else (endpoint, delivery)

    async def _wait(self, now: float) -> None:
        """Until something is due, or changed."""
        pause = LOOK_SECONDS
        if self._due and not self._full:
            pause = min(max(self._due[0][0] - now, 0.01), LOOK_SECONDS)
        try:
            async with asyncio.timeout(pause):
                await self._more.wait()
        except TimeoutError:
            return
        self._more.clear()

    async def _try(self, endpoint: Endpoint, delivery: Delivery) -> None:
        try:
            event, disable = await self._attempt(endpoint, delivery)
            await self._record(delivery, event)
            if disable is not None:
                await self._disable(endpoint.endpoint_id, disable, delivery)
        finally:
            self._more.set()

    async def _attempt(
        self, endpoint: Endpoint, delivery: Delivery
    ) -> tuple[Event, DisableReason | None]:
        """Try once; return what to record, and why to disable the endpoint, if so."""
        began, now = self._clock.monotonic(), self._clock.now()
        body = body_of(delivery)
        status: int | None = None
        try:
            key = self._settings.secret_key.get_secret_value()
            signed = signing.headers(key, endpoint, delivery.delivery_id, body, now)
            headers = {**cloud_event_headers(delivery), **signed}
            status = await self._post(endpoint.url, body, headers)
            error = f"it answered {status}"
        except (Unreachable, signing.NoSecretKey) as failure:
            error = str(failure)
        seconds = round(self._clock.monotonic() - began, 3)
        attempt = delivery.attempts + 1
        well = status is not None and 200 <= status < 300
        outcome = "delivered" if well else "unreachable" if status is None else "refused"
        self._metrics.attempts.labels(outcome).inc()
        self._metrics.duration.observe(seconds)
        if status is not None and well:
            return WebhookDelivered(
                endpoint_id=endpoint.endpoint_id, delivery_id=delivery.delivery_id,
                attempt=attempt, status=status, seconds=seconds,
            ), None  # fmt: skip
        next_at = None
        if status != GONE:
            next_at = rules.next_try(
                delivery, self._clock.now(),
                first_seconds=self._settings.webhook_retry_seconds,
                seconds_max=self._settings.webhook_retry_seconds_max,
            )  # fmt: skip
        failed = WebhookAttemptFailed(
            endpoint_id=endpoint.endpoint_id, delivery_id=delivery.delivery_id,
            attempt=attempt, error=error, status=status, seconds=seconds, next_at=next_at,
        )  # fmt: skip
        return failed, self._why_to_disable(status, next_at, delivery)

    def _why_to_disable(
        self, status: int | None, next_at: datetime | None, delivery: Delivery
    ) -> DisableReason | None:
        if status == GONE:
            return "gone"
        succeeded = self._ledger.succeeded_at.get(delivery.endpoint_id)
        if next_at is None and (succeeded is None or succeeded < delivery.first_at):
            return "failing"
        return None

    async def _record(self, delivery: Delivery, event: Event) -> None:
        subject = subjects.aggregate("webhook", delivery.endpoint_id, delivery.delivery_id)

        def decide(state: Delivery | None) -> Event:
            if state is None or state.status != "pending" or state.attempts != delivery.attempts:
                raise AlreadyDone("another leader was faster")
            return event

        try:
            recorded, _ = await append_decided(self._store, subject, rules.evolve_delivery, decide)
            self._recorded[delivery.endpoint_id, delivery.delivery_id] = recorded.seq
        except AlreadyDone as done:
            log.info("delivered twice", delivery=delivery.delivery_id, why=str(done))

    async def _disable(self, endpoint_id: str, reason: DisableReason, last: Delivery) -> None:
        detail = f"the delivery {last.delivery_id} of {last.job_id} could not be made"
        event = WebhookEndpointDisabled(endpoint_id=endpoint_id, reason=reason, detail=detail)
        try:
            await append_decided(
                self._store,
                subjects.aggregate("webhook", endpoint_id),
                rules.evolve_endpoint,
                lambda state: rules.disable(state, event),
            )
        except AlreadyDone:
            return
        log.warning("webhook endpoint disabled", endpoint=endpoint_id, reason=reason, detail=detail)
