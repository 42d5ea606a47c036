"""Events of outgoing webhooks: endpoints that customers registered, and deliveries to them.

A signing secret is never recorded: it derives from the deployment's secret key, the endpoint's id
and ``generation``.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from vllm_batch.events.base import Event
from vllm_batch.ids import JobId, ProjectId

DisableReason = Literal["failing", "gone", "requested"]


class _EndpointEvent(Event, frozen=True, kw_only=True):
    VERSION: ClassVar[int] = 2
    AGGREGATE: ClassVar[tuple[str, ...]] = ("endpoint_id",)

    endpoint_id: str
    requested_by: str | None = None
    """The key that asked for it; None where nobody did."""


class WebhookEndpointCreated(_EndpointEvent, frozen=True, kw_only=True):
    """A project wants ``event_types`` (such as ``batch.completed``) posted to ``url``."""

    TYPE: ClassVar[str] = "webhook.endpoint_created"

    project: ProjectId
    name: str
    url: str
    event_types: list[str]


class WebhookEndpointUpdated(_EndpointEvent, frozen=True, kw_only=True):
    """From now on it is like this."""

    TYPE: ClassVar[str] = "webhook.endpoint_updated"

    name: str
    url: str
    event_types: list[str]


class WebhookSecretRotated(_EndpointEvent, frozen=True, kw_only=True):
    """Deliveries are signed with the secret of ``generation``, until ``old_until`` with the one
    before it, too."""

    TYPE: ClassVar[str] = "webhook.secret_rotated"

    generation: int
    old_until: datetime | None = None


class WebhookEndpointDisabled(_EndpointEvent, frozen=True, kw_only=True):
    """Nothing is sent to it any more until somebody enables it; ``detail`` says why."""

    TYPE: ClassVar[str] = "webhook.endpoint_disabled"

    reason: DisableReason
    detail: str = ""


class WebhookEndpointEnabled(_EndpointEvent, frozen=True, kw_only=True):
    """Somebody takes it for mended."""

    TYPE: ClassVar[str] = "webhook.endpoint_enabled"


class WebhookEndpointDeleted(_EndpointEvent, frozen=True, kw_only=True):
    """It is gone, with what was still to be delivered to it."""

    TYPE: ClassVar[str] = "webhook.endpoint_deleted"


class _DeliveryEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("endpoint_id", "delivery_id")

    endpoint_id: str
    delivery_id: str


class WebhookScheduled(_DeliveryEvent, frozen=True, kw_only=True):
    """The event with sequence ``cause`` is to be delivered."""

    TYPE: ClassVar[str] = "webhook.scheduled"

    event_type: str
    job_id: JobId
    created_at: datetime
    cause: int


class WebhookDelivered(_DeliveryEvent, frozen=True, kw_only=True):
    """The endpoint answered with a 2xx to the ``attempt``-th try, counted from 1."""

    TYPE: ClassVar[str] = "webhook.delivered"

    attempt: int
    status: int
    seconds: float


class WebhookAttemptFailed(_DeliveryEvent, frozen=True, kw_only=True):
    """It did not. ``status``: None where there was no answer. ``next_at``: None, the last try."""

    TYPE: ClassVar[str] = "webhook.attempt_failed"

    attempt: int
    error: str
    seconds: float
    status: int | None = None
    next_at: datetime | None = None


class WebhookReplayRequested(_DeliveryEvent, frozen=True, kw_only=True):
    """Somebody wants it delivered again, whatever became of it."""

    TYPE: ClassVar[str] = "webhook.replay_requested"

    requested_by: str


WebhookEvent = (
    WebhookEndpointCreated
    | WebhookEndpointUpdated
    | WebhookSecretRotated
    | WebhookEndpointDisabled
    | WebhookEndpointEnabled
    | WebhookEndpointDeleted
    | WebhookScheduled
    | WebhookDelivered
    | WebhookAttemptFailed
    | WebhookReplayRequested
)
