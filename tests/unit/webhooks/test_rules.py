"""Endpoints and deliveries as folds of their events, the pauses between tries, and signatures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import openai
import pytest
from standardwebhooks import Webhook

from batch_gateway.webhooks import signing
from batch_gateway.webhooks.ledger import Ledger
from batch_gateway.webhooks.sender import body_of
from vllm_batch.aggregates import webhook as rules
from vllm_batch.aggregates.webhook import Delivery, Endpoint
from vllm_batch.errors import AlreadyDone, Rejected
from vllm_batch.events import Event, Recorded
from vllm_batch.events.webhook import (
    WebhookAttemptFailed,
    WebhookDelivered,
    WebhookEndpointCreated,
    WebhookEndpointDeleted,
    WebhookEndpointDisabled,
    WebhookReplayRequested,
    WebhookScheduled,
)
from vllm_batch.ids import EventId, JobId, ProjectId

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = "a deployment's own secret key"
PROJECT = ProjectId("default")
CREATED = WebhookEndpointCreated(
    endpoint_id="we_1", project=PROJECT, name="n", url="https://example.com",
    event_types=["batch.completed"],
)  # fmt: skip
SCHEDULED = WebhookScheduled(
    endpoint_id="we_1", delivery_id="evt_1", event_type="batch.completed",
    job_id=JobId("batch_1"), created_at=NOW, cause=7,
)  # fmt: skip


def recorded(event: Event, seq: int, seconds: float = 0.0) -> Recorded:
    return Recorded(seq, EventId(f"evt_{seq}"), NOW + timedelta(seconds=seconds), "test", event)


def failed(attempt: int, next_at: datetime | None) -> WebhookAttemptFailed:
    return WebhookAttemptFailed(
        endpoint_id="we_1", delivery_id="evt_1", attempt=attempt, error="it answered 500",
        status=500, seconds=0.1, next_at=next_at,
    )  # fmt: skip


def ledger_of(*events: Event) -> Ledger:
    ledger = Ledger()
    for seq, event in enumerate(events, 1):
        ledger.apply(recorded(event, seq))
    return ledger


def test_pauses_grow_and_end_after_a_day() -> None:
    delivery = rules.evolve_delivery(None, recorded(SCHEDULED, 1))
    now, pauses = NOW, []
    while due := rules.next_try(delivery, now, first_seconds=5, seconds_max=86_400):
        pauses.append((due - now).total_seconds())
        now = due
        failure = failed(delivery.attempts + 1, due)
        delivery = rules.evolve_delivery(delivery, recorded(failure, 2 + len(pauses)))
    steps = [5, 60, 300, 1800, 7200, 18_000, 18_000, 18_000]
    assert all(step <= pause < 1.1 * step for step, pause in zip(steps, pauses[:8], strict=True))
    assert now - NOW < timedelta(days=1)


def test_what_failed_together_is_not_tried_again_together() -> None:
    delivery = rules.evolve_delivery(None, recorded(SCHEDULED, 1))
    others = [msgspec.structs.replace(delivery, delivery_id=f"evt_{n}") for n in range(100)]
    due = {rules.next_try(one, NOW, first_seconds=5, seconds_max=86_400) for one in others}
    assert len(due) > 90


def test_a_delivery_is_given_up_and_replayed() -> None:
    ledger = ledger_of(CREATED, SCHEDULED, failed(1, NOW), failed(2, None))
    [delivery] = ledger.deliveries_to("we_1")
    assert (delivery.status, delivery.attempts) == ("given_up", 2)
    replay = WebhookReplayRequested(endpoint_id="we_1", delivery_id="evt_1", requested_by="key_1")
    ledger.apply(recorded(replay, 5, seconds=90))
    [delivery] = ledger.deliveries_to("we_1")
    assert (delivery.status, delivery.attempts) == ("pending", 0)
    assert delivery.first_at == NOW + timedelta(seconds=90)


def test_an_endpoint_gets_what_ends_after_it_was_made_and_only_its_types() -> None:
    ledger = Ledger()
    ledger.apply(recorded(CREATED, 10))
    assert ledger.wanting(PROJECT, "batch.completed", 11)
    assert not ledger.wanting(PROJECT, "batch.completed", 9)
    assert not ledger.wanting(PROJECT, "batch.failed", 11)
    assert not ledger.wanting(ProjectId("other"), "batch.completed", 11)
    ledger.apply(recorded(WebhookEndpointDeleted(endpoint_id="we_1"), 12))
    assert not ledger.wanting(PROJECT, "batch.completed", 13)
    assert ledger.unscheduled_after() == ledger.position


def test_the_search_for_missing_deliveries_begins_at_the_last_one() -> None:
    assert ledger_of(CREATED).unscheduled_after() == 1
    later = msgspec.structs.replace(SCHEDULED, cause=700)
    ledger = ledger_of(CREATED)
    ledger.apply(recorded(later, 900))
    assert ledger.unscheduled_after() == 699


def test_an_event_that_was_taken_in_changes_nothing() -> None:
    ledger = ledger_of(CREATED, SCHEDULED)
    delivered = WebhookDelivered(
        endpoint_id="we_1", delivery_id="evt_1", attempt=1, status=200, seconds=0.1
    )
    ledger.apply(recorded(delivered, 3))
    ledger.apply(recorded(SCHEDULED, 2))
    assert ledger.deliveries["we_1", "evt_1"].status == "delivered"


def test_disabling_and_enabling_take_effect_once() -> None:
    event = WebhookEndpointDisabled(endpoint_id="we_1", reason="failing", detail="why")
    active = rules.evolve_endpoint(None, recorded(CREATED, 1))
    with pytest.raises(AlreadyDone):
        rules.enable(active, "we_1")
    disabled = rules.evolve_endpoint(active, recorded(rules.disable(active, event), 2))
    assert disabled.disabled == "failing: why"
    with pytest.raises(AlreadyDone):
        rules.disable(disabled, event)
    enabled = rules.evolve_endpoint(disabled, recorded(rules.enable(disabled, "we_1"), 3))
    assert enabled.disabled is None
    gone = rules.evolve_endpoint(disabled, recorded(WebhookEndpointDeleted(endpoint_id="we_1"), 4))
    with pytest.raises(Rejected):
        rules.enable(gone, "we_1")


def endpoint(**changes: object) -> Endpoint:
    return msgspec.structs.replace(rules.evolve_endpoint(None, recorded(CREATED, 1)), **changes)


def pending() -> Delivery:
    return rules.evolve_delivery(None, recorded(SCHEDULED, 1))


def test_the_official_client_and_the_standards_library_verify_what_is_sent() -> None:
    now = datetime.now(UTC)
    body = body_of(pending())
    headers = signing.headers(KEY, endpoint(), "evt_1", body, now)
    secret = signing.secret_of(KEY, "we_1", 1)
    Webhook(secret).verify(body, headers)
    with openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1", webhook_secret=secret) as client:
        event = client.webhooks.unwrap(body, headers)
        assert (event.type, event.id) == ("batch.completed", "evt_1")
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.replace("batch_1", "batch_2"), headers)


@pytest.mark.parametrize(("age", "old_counts"), [(-1, True), (1, False)])
def test_an_old_secret_counts_until_its_time_is_up(age: float, old_counts: bool) -> None:
    now = datetime.now(UTC)
    rotated = endpoint(generation=2, old_until=now - timedelta(seconds=age))
    headers = signing.headers(KEY, rotated, "evt_1", "{}", now)
    Webhook(signing.secret_of(KEY, "we_1", 2)).verify("{}", headers)
    assert len(headers["webhook-signature"].split()) == (2 if old_counts else 1)
    if old_counts:
        Webhook(signing.secret_of(KEY, "we_1", 1)).verify("{}", headers)


def test_secrets_differ_by_endpoint_generation_and_deployment() -> None:
    secrets = {
        signing.secret_of(KEY, "we_1", 1), signing.secret_of(KEY, "we_1", 2),
        signing.secret_of(KEY, "we_2", 1), signing.secret_of(KEY + "!", "we_1", 1),
    }  # fmt: skip
    assert len(secrets) == 4
    with pytest.raises(signing.NoSecretKey, match="VLLM_BATCH_SECRET_KEY"):
        signing.secret_of("short", "we_1", 1)
