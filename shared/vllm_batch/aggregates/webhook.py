"""Rules of outgoing webhooks. Pure.

An endpoint:  active ⇄ disabled → deleted
A delivery:   pending ─► delivered
                ▲  └───► given up        a replay makes either pending again
"""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from vllm_batch.errors import AlreadyDone, Rejected
from vllm_batch.events import Recorded
from vllm_batch.events.webhook import (
    WebhookAttemptFailed,
    WebhookDelivered,
    WebhookEndpointCreated,
    WebhookEndpointDeleted,
    WebhookEndpointDisabled,
    WebhookEndpointEnabled,
    WebhookEndpointUpdated,
    WebhookReplayRequested,
    WebhookScheduled,
    WebhookSecretRotated,
)
from vllm_batch.ids import JobId, ProjectId

EVENT_TYPES = {
    "job.completed": "batch.completed",
    "job.failed": "batch.failed",
    "job.expired": "batch.expired",
    "job.cancelled": "batch.cancelled",
}
"""What OpenAI calls the ends of a batch, by our names of them."""

_STEPS = (1, 12, 60, 360, 1440, 3600)
"""Pauses after failures, in multiples of the first; the last one repeats."""
_SPREAD = 0.1


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as it is. ``since_seq``: events after it are delivered; ``generation`` counts
    its secrets from 1."""

    endpoint_id: str
    project: ProjectId
    name: str
    url: str
    event_types: list[str]
    created_at: datetime
    updated_at: datetime
    since_seq: int
    generation: int = 1
    old_until: datetime | None = None
    disabled: str | None = None
    deleted: bool = False


Status = Literal["pending", "delivered", "given_up"]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery as it is. ``attempts``: tries since it was scheduled or replayed the last time,
    ``first_at``: when that was; ``due``: when the next try is."""

    endpoint_id: str
    delivery_id: str
    event_type: str
    job_id: JobId
    created_at: datetime
    cause: int
    status: Status
    first_at: datetime
    due: datetime
    attempts: int = 0
    last_status: int | None = None
    last_error: str | None = None
    last_at: datetime | None = None


def evolve_endpoint(state: Endpoint | None, recorded: Recorded) -> Endpoint:
    """Return the endpoint after ``recorded``.

    Raises:
        Rejected: the event has no endpoint before it.
    """
    event, time = recorded.event, recorded.time
    if isinstance(event, WebhookEndpointCreated):
        return Endpoint(
            endpoint_id=event.endpoint_id, project=event.project, name=event.name, url=event.url,
            event_types=event.event_types, created_at=time, updated_at=time,
            since_seq=recorded.seq,
        )  # fmt: skip
    if state is None:
        raise Rejected(f"{event.TYPE} belongs to no webhook endpoint")
    changes: dict[str, object] = {}
    match event:
        case WebhookEndpointUpdated(name=name, url=url, event_types=types):
            changes = {"name": name, "url": url, "event_types": types, "updated_at": time}
        case WebhookSecretRotated(generation=generation, old_until=old_until):
            changes = {"generation": generation, "old_until": old_until, "updated_at": time}
        case WebhookEndpointDisabled(reason=reason, detail=detail):
            changes = {"disabled": f"{reason}: {detail}" if detail else reason}
        case WebhookEndpointEnabled():
            changes = {"disabled": None}
        case WebhookEndpointDeleted():
            changes = {"deleted": True}
    return msgspec.structs.replace(state, **changes)


def evolve_delivery(state: Delivery | None, recorded: Recorded) -> Delivery:
    """Return the delivery after ``recorded``.

    Raises:
        Rejected: the event has no delivery before it.
    """
    event, time = recorded.event, recorded.time
    if isinstance(event, WebhookScheduled):
        return Delivery(
            endpoint_id=event.endpoint_id, delivery_id=event.delivery_id,
            event_type=event.event_type, job_id=event.job_id, created_at=event.created_at,
            cause=event.cause, status="pending", first_at=time, due=time,
        )  # fmt: skip
    if state is None:
        raise Rejected(f"{event.TYPE} belongs to no scheduled delivery")
    replace = msgspec.structs.replace
    match event:
        case WebhookDelivered(attempt=attempt, status=status):
            return replace(
                state, status="delivered", attempts=attempt, last_status=status, last_error=None,
                last_at=time,
            )  # fmt: skip
        case WebhookAttemptFailed(attempt=attempt, status=answer, error=error, next_at=next_at):
            return replace(
                state, status="pending" if next_at else "given_up", due=next_at or state.due,
                attempts=attempt, last_status=answer, last_error=error, last_at=time,
            )  # fmt: skip
        case WebhookReplayRequested():
            return replace(state, status="pending", attempts=0, first_at=time, due=time)
    raise Rejected(f"{event.TYPE} is none of a delivery's")


def next_try(
    delivery: Delivery, now: datetime, *, first_seconds: float, seconds_max: float
) -> datetime | None:
    """Return when to try again after a try that failed ``now``; None: never.

    ``first_seconds``: the pause after the first failure. ``seconds_max``: how long after it was
    scheduled a delivery is given up. A pause is up to a tenth longer, by the delivery's id: what
    failed together does not come back together.
    """
    step = first_seconds * _STEPS[min(delivery.attempts, len(_STEPS) - 1)]
    spread = zlib.crc32(f"{delivery.delivery_id}:{delivery.attempts}".encode()) / 2**32
    due = now + timedelta(seconds=step * (1 + _SPREAD * spread))
    return due if due <= delivery.first_at + timedelta(seconds=seconds_max) else None


def disable(state: Endpoint | None, event: WebhookEndpointDisabled) -> WebhookEndpointDisabled:
    """Return ``event`` if it changes anything.

    Raises:
        AlreadyDone: it is disabled, or deleted.
    """
    if state is None or state.deleted or state.disabled is not None:
        raise AlreadyDone("the endpoint takes no deliveries already")
    return event


def enable(
    state: Endpoint | None, endpoint_id: str, *, requested_by: str | None = None
) -> WebhookEndpointEnabled:
    """Return the event that makes it active again.

    Raises:
        AlreadyDone: it is active.
        Rejected: it was deleted.
    """
    if state is None or state.deleted:
        raise Rejected("the endpoint was deleted")
    if state.disabled is None:
        raise AlreadyDone("the endpoint is active")
    return WebhookEndpointEnabled(endpoint_id=endpoint_id, requested_by=requested_by)
