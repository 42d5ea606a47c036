"""Endpoints and deliveries, folded from ``webhook.>``. Owns nothing that is not in the log."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime

from vllm_batch.aggregates import webhook as rules
from vllm_batch.aggregates.webhook import Delivery, Endpoint
from vllm_batch.event_store import EventStore
from vllm_batch.events import Recorded
from vllm_batch.events.webhook import (
    WebhookAttemptFailed,
    WebhookDelivered,
    WebhookReplayRequested,
    WebhookScheduled,
)
from vllm_batch.ids import ProjectId
from vllm_batch.messaging import subjects

DELIVERIES_MAX = 10_000
"""Ended deliveries that are remembered; the log has them all."""

DeliveryKey = tuple[str, str]
_OF_DELIVERY = WebhookScheduled | WebhookDelivered | WebhookAttemptFailed | WebhookReplayRequested


class Ledger:
    """What the log says of all webhooks. ``position``: the last sequence that was folded in.

    ``scheduled_up_to``: sequence of the newest cause that has a delivery. ``succeeded_at``: when
    an endpoint last answered well.
    """

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.deliveries: OrderedDict[DeliveryKey, Delivery] = OrderedDict()
        self.succeeded_at: dict[str, datetime] = {}
        self.position = 0
        self.scheduled_up_to = 0

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; one that is in already changes nothing."""
        if recorded.seq <= self.position:
            return
        self.position = recorded.seq
        event = recorded.event
        if isinstance(event, _OF_DELIVERY):
            self._apply_to_delivery(event, recorded)
            return
        endpoint_id = event.aggregate_id()[0]
        endpoint = rules.evolve_endpoint(self.endpoints.get(endpoint_id), recorded)
        self.endpoints[endpoint_id] = endpoint

    def _apply_to_delivery(self, event: _OF_DELIVERY, recorded: Recorded) -> None:
        key = (event.endpoint_id, event.delivery_id)
        before = self.deliveries.pop(key, None)
        if before is None and not isinstance(event, WebhookScheduled):
            return  # so old that it was forgotten
        delivery = rules.evolve_delivery(before, recorded)
        self.deliveries[key] = delivery
        self.scheduled_up_to = max(self.scheduled_up_to, delivery.cause)
        if delivery.status == "delivered":
            self.succeeded_at[event.endpoint_id] = recorded.time
        if len(self.deliveries) > DELIVERIES_MAX:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        ended = (key for key, found in self.deliveries.items() if found.status != "pending")
        if (oldest := next(ended, None)) is not None:
            del self.deliveries[oldest]

    def unscheduled_after(self) -> int:
        """Return a sequence after which ends of batches may lack a delivery."""
        living = [e.since_seq for e in self.endpoints.values() if not e.deleted]
        if not living:
            return self.position
        return min(self.position, max(self.scheduled_up_to - 1, min(living)))

    def of_project(self, project: ProjectId) -> list[Endpoint]:
        """Return a project's endpoints, newest first."""
        found = [e for e in self.endpoints.values() if e.project == project and not e.deleted]
        return sorted(found, key=lambda endpoint: endpoint.since_seq, reverse=True)

    def wanting(self, project: ProjectId | None, event_type: str, seq: int) -> list[Endpoint]:
        """Return the endpoints that are to get an event of sequence ``seq``."""
        return [
            endpoint
            for endpoint in self.endpoints.values()
            if endpoint.project == project
            and not endpoint.deleted
            and endpoint.since_seq < seq
            and event_type in endpoint.event_types
        ]

    def deliveries_to(self, endpoint_id: str) -> list[Delivery]:
        """Return an endpoint's deliveries, newest first."""
        found = [d for (owner, _), d in self.deliveries.items() if owner == endpoint_id]
        return sorted(found, key=lambda delivery: delivery.cause, reverse=True)


async def load(store: EventStore) -> Ledger:
    """Return the ledger as the log has it now.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    ledger = Ledger()
    async for batch in store.read(subjects.ALL_WEBHOOKS):
        for recorded in batch:
            ledger.apply(recorded)
    return ledger
