"""Webhook endpoints: OpenAI's calls, and beyond them deliveries, replay and enabling.

Writes ``webhook.*``; reads an endpoint's own events. The orchestrator delivers; only a test
delivery leaves from here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from batch_gateway.api.answers import answer, documented, page_of, takes
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal, shown
from batch_gateway.api.request_body import Body, invalid, read_object, wrong_type
from batch_gateway.api.webhook_objects import (
    TYPES,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointRequest,
    checked_type,
    delivery_object,
    endpoint_object,
    wanted,
)
from batch_gateway.webhooks import signing
from batch_gateway.webhooks.ledger import Ledger
from batch_gateway.webhooks.public_http import AllowedAddresses, PublicHttp, Unreachable
from batch_gateway.webhooks.sender import body_of, cloud_event_headers
from vllm_batch.aggregates import webhook as rules
from vllm_batch.aggregates.webhook import Delivery, Endpoint
from vllm_batch.errors import NotFound, Rejected
from vllm_batch.event_store import append_decided
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import Event
from vllm_batch.events.webhook import (
    WebhookEndpointCreated,
    WebhookEndpointDeleted,
    WebhookEndpointUpdated,
    WebhookReplayRequested,
    WebhookSecretRotated,
)
from vllm_batch.ids import JobId, ProjectId
from vllm_batch.messaging import subjects

router = APIRouter(prefix="/v1", tags=["Webhooks"])

OLD_SECRET_SECONDS = 24 * 3600
PAGE_MAX = 100
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a deleted endpoint."""

    id: str
    object: str = "webhook_endpoint.deleted"
    deleted: bool = True


class TestResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoint answered to a sample."""

    object: str = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: bool = True


class EventTypeList(msgspec.Struct, frozen=True, kw_only=True):
    """All types."""

    object: str = "list"
    data: list[str]


def _key(api: Dependencies) -> str:
    return api.settings.secret_key.get_secret_value()


def _allowed(api: Dependencies) -> AllowedAddresses:
    return AllowedAddresses(api.settings.webhook_networks_allowed)


async def _ledger(api: Dependencies, *tokens: str) -> Ledger:
    """Return what the log says of all endpoints, or of one endpoint's deliveries."""
    ledger = Ledger()
    async for batch in api.store.read(subjects.aggregate("webhook", *tokens)):
        for recorded in batch:
            ledger.apply(recorded)
    return ledger


async def _find(api: Dependencies, project: ProjectId, endpoint_id: str) -> Endpoint:
    if endpoint_id.startswith("we_") and endpoint_id.isascii() and endpoint_id[3:].isalnum():
        subject = subjects.aggregate("webhook", endpoint_id)
        found, _ = await fold(api.store, subject, rules.evolve_endpoint)
        if found is not None and found.project == project and not found.deleted:
            return found
    raise NotFound(f"No webhook endpoint found with id '{shown(endpoint_id)}'.")


async def _change(
    api: Dependencies, endpoint_id: str, event_of: Callable[[Endpoint], Event]
) -> Endpoint:
    """Record what follows from the endpoint as it is at that moment; return what it is then."""

    def decide(state: Endpoint | None) -> Event:
        if state is None or state.deleted:
            raise Rejected("the endpoint was deleted")
        return event_of(state)

    subject = subjects.aggregate("webhook", endpoint_id)
    recorded, before = await append_decided(api.store, subject, rules.evolve_endpoint, decide)
    return rules.evolve_endpoint(before, recorded)


@router.get("/webhook_event_types", responses=documented(EventTypeList))
async def list_event_types(_: CalledBy) -> Response:
    """List what may be subscribed to."""
    return answer(EventTypeList(data=TYPES))


@router.post(
    "/webhook_endpoints",
    responses=documented(WebhookEndpoint),
    openapi_extra=takes(WebhookEndpointRequest),
)
async def create_endpoint(request: Request, api: Api, caller: CalledBy) -> Response:
    """Create an endpoint; the only answer, besides a rotation's, that shows the secret."""
    body = await read_object(request, api.settings)
    asked = wanted(body, _allowed(api), complete=True)
    async with api.locks.of(f"webhooks of {caller.project}"):
        there = (await _ledger(api, "*")).of_project(caller.project)
        if len(there) >= (most := api.settings.webhook_endpoints_max):
            raise HttpRefusal(400, f"A project has at most {most} endpoints.", code="limit_reached")
        endpoint_id = api.new_id("we_")
        signing.secret_of(_key(api), endpoint_id, 1)  # nothing is recorded that cannot be signed
        created = WebhookEndpointCreated(
            endpoint_id=endpoint_id, project=caller.project, name=asked.name or "",
            url=asked.url or "", event_types=asked.event_types or [],
            requested_by=caller.key_id,
        )  # fmt: skip
        recorded = await api.store.append(created, expected=0)
    return answer(endpoint_object(rules.evolve_endpoint(None, recorded), _key(api), reveal=True))


@router.get("/webhook_endpoints", responses=documented(WebhookEndpoint))
async def list_endpoints(
    api: Api, caller: CalledBy, limit: Limit = 20, after: str | None = None
) -> Response:
    """List endpoints, newest first."""
    found = (await _ledger(api, "*")).of_project(caller.project)
    if after is not None:
        ids = [endpoint.endpoint_id for endpoint in found]
        if after not in ids:
            raise NotFound(f"No webhook endpoint found with id '{shown(after)}'.")
        found = found[ids.index(after) + 1 :]
    shown_ones = [endpoint_object(endpoint, _key(api)) for endpoint in found[:limit]]
    return page_of(shown_ones, has_more=len(found) > limit)


@router.get("/webhook_endpoints/{endpoint_id}", responses=documented(WebhookEndpoint))
async def retrieve_endpoint(endpoint_id: str, api: Api, caller: CalledBy) -> Response:
    """Retrieve an endpoint."""
    return answer(endpoint_object(await _find(api, caller.project, endpoint_id), _key(api)))


@router.post("/webhook_endpoints/{endpoint_id}", responses=documented(WebhookEndpoint))
async def update_endpoint(
    endpoint_id: str, request: Request, api: Api, caller: CalledBy
) -> Response:
    """Change name, URL or types; what is not given stays."""
    body = await read_object(request, api.settings)
    asked = wanted(body, _allowed(api), complete=False)
    found = await _find(api, caller.project, endpoint_id)

    def updated(before: Endpoint) -> WebhookEndpointUpdated:
        return WebhookEndpointUpdated(
            endpoint_id=endpoint_id,
            name=asked.name or before.name,
            url=asked.url or before.url,
            event_types=asked.event_types or before.event_types,
            requested_by=caller.key_id,
        )

    after = updated(found)
    if (after.name, after.url, after.event_types) != (found.name, found.url, found.event_types):
        found = await _change(api, endpoint_id, updated)
    return answer(endpoint_object(found, _key(api)))


@router.delete("/webhook_endpoints/{endpoint_id}", responses=documented(Deleted))
async def delete_endpoint(endpoint_id: str, api: Api, caller: CalledBy) -> Response:
    """Delete an endpoint and what was still to be delivered to it."""
    await _find(api, caller.project, endpoint_id)
    event = WebhookEndpointDeleted(endpoint_id=endpoint_id, requested_by=caller.key_id)
    await _change(api, endpoint_id, lambda _: event)
    return answer(Deleted(id=endpoint_id))


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret", responses=documented(WebhookEndpoint)
)
async def rotate_secret(endpoint_id: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Make a new secret; ``keep_old_secret_active_for_24_hours`` signs with both for a day."""
    body = await _optional_object(request, api)
    keep = body.get("keep_old_secret_active_for_24_hours", False)
    if not isinstance(keep, bool):
        raise wrong_type("keep_old_secret_active_for_24_hours", "a boolean", keep)
    await _find(api, caller.project, endpoint_id)
    old_until = api.clock.now() + timedelta(seconds=OLD_SECRET_SECONDS) if keep else None

    def rotated(before: Endpoint) -> WebhookSecretRotated:
        return WebhookSecretRotated(
            endpoint_id=endpoint_id, generation=before.generation + 1, old_until=old_until,
            requested_by=caller.key_id,
        )  # fmt: skip

    changed = await _change(api, endpoint_id, rotated)
    return answer(endpoint_object(changed, _key(api), reveal=True))


@router.post("/webhook_endpoints/{endpoint_id}/test", responses=documented(TestResult))
async def test_endpoint(endpoint_id: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Send a sample at once and say what the endpoint answered."""
    body = await read_object(request, api.settings)
    event_type = checked_type(body.get("event_type"), "event_type")
    endpoint = await _find(api, caller.project, endpoint_id)
    now = api.clock.now()
    sample = Delivery(
        endpoint_id=endpoint_id, delivery_id=api.new_id("evt_"), event_type=event_type,
        job_id=JobId("batch_" + "0" * 24), created_at=now, cause=0, status="pending",
        first_at=now, due=now,
    )  # fmt: skip
    text = body_of(sample)
    signed = signing.headers(_key(api), endpoint, sample.delivery_id, text, now)
    headers = {**cloud_event_headers(sample), **signed}
    http = PublicHttp(_allowed(api), api.settings.webhook_timeout_seconds)
    try:
        status = await http.post(endpoint.url, text, headers)
    except Unreachable as error:
        raise HttpRefusal(
            400, f"The endpoint could not be reached: {error}.", code="webhook_unreachable"
        ) from error
    finally:
        await http.close()
    return answer(
        TestResult(webhook_endpoint_id=endpoint_id, event_type=event_type, status_code=status)
    )


@router.post("/webhook_endpoints/{endpoint_id}/enable", responses=documented(WebhookEndpoint))
async def enable_endpoint(endpoint_id: str, api: Api, caller: CalledBy) -> Response:
    """Deliver to a disabled endpoint again (beyond OpenAI)."""
    await _find(api, caller.project, endpoint_id)
    recorded, before = await append_decided(
        api.store,
        subjects.aggregate("webhook", endpoint_id),
        rules.evolve_endpoint,
        lambda state: rules.enable(state, endpoint_id, requested_by=caller.key_id),
    )
    return answer(endpoint_object(rules.evolve_endpoint(before, recorded), _key(api)))


@router.get("/webhook_endpoints/{endpoint_id}/deliveries", responses=documented(WebhookDelivery))
async def list_deliveries(
    endpoint_id: str, api: Api, caller: CalledBy, limit: Limit = 20
) -> Response:
    """List the newest deliveries to an endpoint (beyond OpenAI)."""
    await _find(api, caller.project, endpoint_id)
    found = (await _ledger(api, endpoint_id, "*")).deliveries_to(endpoint_id)
    shown_ones = [delivery_object(delivery) for delivery in found[:limit]]
    return page_of(shown_ones, has_more=len(found) > limit)


@router.post(
    "/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/replay",
    responses=documented(WebhookDelivery),
)
async def replay_delivery(
    endpoint_id: str, delivery_id: str, api: Api, caller: CalledBy
) -> Response:
    """Deliver something once more, whatever became of it (beyond OpenAI)."""
    await _find(api, caller.project, endpoint_id)
    if not (delivery_id.isascii() and delivery_id.removeprefix("evt_").isalnum()):
        raise invalid("delivery_id", "it is the id of no delivery")

    def decide(state: Delivery | None) -> Event:
        if state is None:
            raise NotFound(f"No delivery found with id '{shown(delivery_id)}'.")
        return WebhookReplayRequested(
            endpoint_id=endpoint_id, delivery_id=delivery_id, requested_by=caller.key_id
        )

    subject = subjects.aggregate("webhook", endpoint_id, delivery_id)
    recorded, before = await append_decided(api.store, subject, rules.evolve_delivery, decide)
    return answer(delivery_object(rules.evolve_delivery(before, recorded)))


async def _optional_object(request: Request, api: Dependencies) -> Body:
    """Return the body as an object; none is an empty one."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in (
        request.headers
    ):
        return {}
    return await read_object(request, api.settings)
