"""Webhook endpoints as clients see them, and reading what clients say of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from batch_gateway.api.errors import missing, shown
from batch_gateway.api.reads import unix
from batch_gateway.api.request_body import Body, invalid, required_text, wrong_type
from batch_gateway.webhooks import signing
from batch_gateway.webhooks.public_http import AllowedAddresses, check_url
from vllm_batch.aggregates.webhook import EVENT_TYPES, Delivery, Endpoint

NAME_CHARACTERS_MAX = 256
TYPES = sorted(EVENT_TYPES.values())


class WebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint. ``status`` (beyond OpenAI): active, or why nothing is sent to it."""

    id: str
    object: str = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str | None
    signing_secret: str | msgspec.UnsetType = msgspec.UNSET
    status: str


class WebhookDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery (beyond OpenAI). ``last_status``: of the newest answer."""

    id: str
    object: str = "webhook_endpoint.delivery"
    event_type: str
    batch_id: str
    created_at: int
    status: str
    attempts: int
    last_status: int | None
    last_error: str | None
    last_attempt_at: int | None
    next_attempt_at: int | None


class WebhookEndpointRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What makes an endpoint, for the OpenAPI document; read by hand, for clear errors."""

    name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
    url: Annotated[str, Meta(min_length=1)]
    event_types: Annotated[list[str], Meta(min_length=1)]


class Wanted(msgspec.Struct, frozen=True):
    """What a client asked for, checked; None where it said nothing."""

    name: str | None
    url: str | None
    event_types: list[str] | None


def wanted(body: Body, allowed: AllowedAddresses, *, complete: bool) -> Wanted:
    """Return the checked parameters; ``complete``: all of them have to be there.

    Raises:
        InvalidInput: one is missing or wrong.
    """
    given = {name: name in body or complete for name in ("name", "url", "event_types")}
    url = required_text(body, "url") if given["url"] else None
    if url is not None:
        check_url(url, allowed)
    return Wanted(
        required_text(body, "name", NAME_CHARACTERS_MAX) if given["name"] else None,
        url,
        event_types(body) if given["event_types"] else None,
    )


def event_types(body: Body) -> list[str]:
    """Return the wanted types, each once.

    Raises:
        InvalidInput: none, or one that is never sent.
    """
    if "event_types" not in body:
        raise missing("event_types")
    value = body["event_types"]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong_type("event_types", "an array of strings", value)
    if not value:
        raise invalid("event_types", "it is empty")
    for item in value:
        checked_type(item, "event_types")
    return list(dict.fromkeys(value))


def checked_type(value: Any, param: str) -> str:
    """Return ``value`` if it is a type that is sent. Raises InvalidInput."""
    if value not in TYPES:
        raise invalid(
            param, f"there is no '{shown(str(value))}' here; there are {', '.join(TYPES)}"
        )
    return str(value)


def endpoint_object(
    endpoint: Endpoint, secret_key: str, *, reveal: bool = False
) -> WebhookEndpoint:
    """Return the endpoint for a client, with its secret where it is new."""
    secret = signing.secret_of(secret_key, endpoint.endpoint_id, endpoint.generation)
    return WebhookEndpoint(
        id=endpoint.endpoint_id,
        created_at=unix(endpoint.created_at),
        updated_at=unix(endpoint.updated_at),
        name=endpoint.name,
        url=endpoint.url,
        event_types=endpoint.event_types,
        signing_secret_hint=signing.hint_of(secret),
        signing_secret=secret if reveal else msgspec.UNSET,
        status=f"disabled ({endpoint.disabled})" if endpoint.disabled else "active",
    )


def delivery_object(delivery: Delivery) -> WebhookDelivery:
    """Return the delivery for a client."""
    return WebhookDelivery(
        id=delivery.delivery_id,
        event_type=delivery.event_type,
        batch_id=delivery.job_id,
        created_at=unix(delivery.created_at),
        status=delivery.status,
        attempts=delivery.attempts,
        last_status=delivery.last_status,
        last_error=delivery.last_error,
        last_attempt_at=_unix(delivery.last_at),
        next_attempt_at=_unix(delivery.due if delivery.status == "pending" else None),
    )


def _unix(time: datetime | None) -> int | None:
    return None if time is None else unix(time)
