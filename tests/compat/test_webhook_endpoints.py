"""The official client manages webhook endpoints."""

from __future__ import annotations

import httpx2
import openai
import pytest
from tests.gateway_bench import Gateway

URL = "https://hooks.example.com/batches"


async def make(client: openai.AsyncOpenAI, name: str = "mine") -> str:
    made = await client.webhooks.create(name=name, url=URL, event_types=["batch.completed"])
    return made.id


async def test_the_life_of_an_endpoint(client: openai.AsyncOpenAI) -> None:
    made = await client.webhooks.create(
        name="mine", url=URL, event_types=["batch.completed", "batch.failed", "batch.completed"]
    )
    assert made.object == "webhook_endpoint"
    assert made.event_types == ["batch.completed", "batch.failed"]
    assert made.signing_secret.startswith("whsec_")
    found = await client.webhooks.retrieve(made.id)
    assert found.signing_secret_hint
    assert found.signing_secret_hint.endswith(made.signing_secret[-4:])
    assert made.signing_secret not in found.model_dump_json()

    changed = await client.webhooks.update(made.id, name="ours")
    assert (changed.name, changed.url) == ("ours", URL)
    rotated = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    assert (await client.webhooks.rotate_secret(made.id)).signing_secret != rotated.signing_secret

    assert (await client.webhooks.delete(made.id)).deleted
    for call in (client.webhooks.retrieve, client.webhooks.delete, client.webhooks.rotate_secret):
        with pytest.raises(openai.NotFoundError):
            await call(made.id)


async def test_endpoints_are_listed_newest_first_in_pages(client: openai.AsyncOpenAI) -> None:
    made = [await make(client, f"number {n}") for n in range(3)]
    page = await client.webhooks.list(limit=2)
    assert [endpoint.id for endpoint in page.data] == made[:0:-1]
    assert [endpoint.id async for endpoint in client.webhooks.list(limit=2)] == made[::-1]


async def test_endpoints_belong_to_their_project(api: Gateway, client: openai.AsyncOpenAI) -> None:
    endpoint = await make(client)
    async with api.async_client(await api.new_key()) as other:
        assert (await other.webhooks.list()).data == []
        with pytest.raises(openai.NotFoundError):
            await other.webhooks.retrieve(endpoint)


async def test_the_types_are_listed(client: openai.AsyncOpenAI) -> None:
    types = (await client.webhooks.event_types.list()).data
    assert types == ["batch.cancelled", "batch.completed", "batch.expired", "batch.failed"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"url": "http://hooks.example.com"}, "url"),
        ({"url": "https://127.0.0.1/x"}, "url"),
        ({"url": 7}, "url"),
        ({"url": None}, "url"),
        ({"name": ""}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": "batch.completed"}, "event_types"),
        ({"event_types": ["video.completed"]}, "event_types"),
    ],
)
async def test_a_wrong_endpoint_is_refused_with_its_parameter(
    http: httpx2.AsyncClient, change: dict[str, object], param: str
) -> None:
    body = {"name": "n", "url": URL, "event_types": ["batch.completed"], **change}
    answer = await http.post("/webhook_endpoints", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert (await http.get("/webhook_endpoints")).json()["data"] == []


async def test_a_project_has_so_many_endpoints_and_no_more(
    api: Gateway, client: openai.AsyncOpenAI
) -> None:
    for _ in range(api.settings.webhook_endpoints_max):
        await make(client)
    with pytest.raises(openai.BadRequestError, match="at most"):
        await make(client)


async def test_a_test_delivery_to_nobody_says_so(client: openai.AsyncOpenAI) -> None:
    endpoint = await client.webhooks.create(
        name="n", url="https://localhost:1/x", event_types=["batch.failed"]
    )
    with pytest.raises(openai.BadRequestError, match="not a public address"):
        await client.webhooks.test(endpoint.id, event_type="batch.failed")


async def test_what_is_not_there_is_404(http: httpx2.AsyncClient) -> None:
    for path in ("we_nothing", "we_*", "we_..", "batch_1"):
        answer = await http.get(f"/webhook_endpoints/{path}/deliveries")
        assert answer.status_code == 404, path
    answer = await http.post("/webhook_endpoints/we_1/deliveries/evt_1/replay")
    assert answer.status_code == 404
