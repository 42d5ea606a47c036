"""Whoever manages the service over HTTP is on record for it: every call there is, from the
document, so that one that is added tomorrow is on trial too."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send
from tests.gateway_bench import Gateway, gateway

from batch_gateway.api.audit import Audit
from batch_gateway.api.authentication import Caller
from vllm_batch import api_keys, ids
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import Event, Recorded
from vllm_batch.events.admin import AdminActionFailed, AdminActionTaken
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.messaging import subjects


@pytest.fixture
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("audit")) as running:
        yield running


async def admin_events(api: Gateway) -> list[Event]:
    found: list[Event] = []
    async with api.store() as store:
        async for batch in store.read(subjects.ALL_ADMIN):
            found += [recorded.event for recorded in batch]
    return found


async def test_every_call_that_changes_something_is_on_record_with_its_key(api: Gateway) -> None:
    async with api.store() as store:
        key, secret = await api_keys.create(store, project="admins", scopes=[api_keys.ADMIN])
    await api.wait_until_known(secret)
    other = await api.new_key()
    root = api.url.removesuffix("/v1")
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx2.AsyncClient(base_url=root, headers=headers, timeout=30) as http:
        document = (await http.get("/openapi.json")).json()
        calls = [
            (method.upper(), re.sub(r"\{\w+(:path)?\}", "nobody", path))
            for path, operations in document["paths"].items()
            for method in operations
            if path.startswith("/admin") and method != "get"
        ]
        assert len(calls) > 15
        failed = []
        for method, path in calls:
            answer = await http.request(method, path, json={})
            if answer.status_code >= 400:
                failed.append((method, path, answer.status_code))
        assert (await http.get("/admin/keys")).status_code == 200  # looking is not
        refused = await http.post(
            "/admin/keys", json={}, headers={"authorization": f"Bearer {other}"}
        )
        assert refused.status_code == 403  # it has done nothing
    events = await admin_events(api)
    taken = [event for event in events if isinstance(event, AdminActionTaken)]
    assert [(event.action, event.target) for event in taken] == calls
    assert {event.user_id for event in taken} == {key.key_id}
    named = {event.action_id: (event.action, event.target) for event in taken}
    said = [
        (*named[event.action_id], int(event.reason.removeprefix("answered ")))
        for event in events
        if isinstance(event, AdminActionFailed)
    ]
    assert said == failed


class AwayStore(MemoryEventStore):
    """A log that takes nothing."""

    async def append(self, event: Event, **_: object) -> Recorded:
        raise EventStoreUnavailable("it is away")


async def test_what_cannot_be_put_on_record_is_not_done() -> None:
    done: list[str] = []
    sent: list[Message] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        done.append(scope["path"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    caller = Caller(ProjectId("p"), KeyId("key_1"))
    scope = {
        "type": "http", "method": "POST", "path": "/admin/keys", "headers": [],
        "state": {"caller": caller},
    }  # fmt: skip
    audit = Audit(app, store=AwayStore(), new_id=ids.new)
    await audit(scope, receive, send)
    assert done == []
    assert sent[0]["status"] == 503
    await audit({**scope, "method": "GET"}, receive, send)
    assert done == ["/admin/keys"]
