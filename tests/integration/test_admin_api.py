"""The admin API over a real gateway and a real worker: who may, what it shows, what it orders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import httpx2
import msgspec
import pytest
from tests.facts import append
from tests.gateway_bench import Gateway

from vllm_batch import api_keys
from vllm_batch.events import (
    Event,
    WorkerCleared,
    WorkerCrashLooping,
    WorkerEngineKilled,
    WorkerLost,
    WorkerStarted,
)
from vllm_batch.ids import KeyId, WorkerId
from vllm_batch.local.stack import LocalStack
from vllm_batch.log_stream import Level, LogLine
from vllm_batch.messaging import subjects

GONE = WorkerId("worker_00000000000000000000dead")
ROUTES = [
    ("GET", "/admin"),
    ("GET", "/admin/workers"),
    ("GET", "/admin/workers/worker-1"),
    ("POST", "/admin/workers/worker-1/restart"),
    ("POST", "/admin/workers/worker-1/clear-gpu"),
    ("POST", "/admin/workers/worker-1/kill"),
    ("POST", "/admin/workers/worker-1/clear"),
    ("GET", "/admin/worker-logs/content"),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    only = {"nats", "api", "worker"}
    settings = {"heartbeat_seconds": 0.2}
    home = tmp_path_factory.mktemp("admin") / "home"
    with LocalStack(home, only=only, settings_overrides=settings) as stack:
        yield Gateway(stack)


async def new_key(api: Gateway, *scopes: str) -> tuple[KeyId, str]:
    async with api.store() as store:
        event, secret = await api_keys.create(store, scopes=scopes)
    await api.wait_until_known(secret)
    return event.key_id, secret


def client_of(api: Gateway, secret: str | None) -> httpx2.AsyncClient:
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    url = api.url.removesuffix("/v1")
    return httpx2.AsyncClient(base_url=url, headers=headers, timeout=40.0)


@pytest.fixture
async def admin(api: Gateway) -> AsyncIterator[tuple[KeyId, httpx2.AsyncClient]]:
    key_id, secret = await new_key(api, api_keys.ADMIN)
    async with client_of(api, secret) as http:
        yield key_id, http


Admin = tuple[KeyId, httpx2.AsyncClient]


async def recorded(api: Gateway, cls: type[Event]) -> list[Event]:
    async with api.store() as store:
        return [r.event async for batch in store.read(subjects.every(cls)) for r in batch]


async def test_only_an_admin_key_opens_it(api: Gateway) -> None:
    _, plain = await new_key(api)
    for secret, wanted, code in (
        (None, 401, "invalid_api_key"),
        ("sk-vb-wrong", 401, "invalid_api_key"),
        (plain, 403, "insufficient_permissions"),
    ):
        async with client_of(api, secret) as http:
            for method, path in ROUTES:
                answer = await http.request(method, path)
                assert answer.status_code == wanted, (method, path)
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["code"] == code
    assert await recorded(api, WorkerEngineKilled) == []


async def test_an_admin_key_opens_the_rest_as_well(admin: Admin) -> None:
    _, http = admin
    assert (await http.get("/v1/batches/batch_x")).status_code == 404


async def test_workers_are_listed(api: Gateway, admin: Admin) -> None:
    _, http = admin
    listed = (await http.get("/admin/workers")).json()
    (worker,) = [one for one in listed["workers"] if one["name"] == "worker-1"]
    assert worker["state"] == "ready"
    assert worker["pid"] == api.stack.service("worker-1").pid
    assert worker["models"] == [api.stack.model_name]
    assert worker["heartbeat_age_seconds"] < 10
    assert listed["queues"] == []
    for path in ("worker-1", worker["worker_id"]):
        assert (await http.get(f"/admin/workers/{path}")).json()["pid"] == worker["pid"]


async def test_an_unknown_worker_is_404(admin: Admin) -> None:
    _, http = admin
    for method, path in (
        ("GET", "/admin/workers/nobody"),
        ("POST", "/admin/workers/nobody/kill"),
        ("POST", "/admin/workers/nobody/clear"),
        ("GET", "/admin/worker-logs/content?worker=nobody"),
    ):
        answer = await http.request(method, path)
        assert answer.status_code == 404, path
        assert "nobody" in answer.json()["error"]["message"]


async def test_a_crash_loop_is_cleared(api: Gateway, admin: Admin) -> None:
    key_id, http = admin
    async with api.store() as store:
        await append(
            store,
            WorkerStarted(
                worker_id=GONE, name="unlucky", host="h", pid=1, engine="simulated", version="1"
            ),
            WorkerLost(worker_id=GONE, reason="silent"),
            WorkerCrashLooping(worker_id=GONE, restarts=5, window_seconds=600.0),
        )
    assert (await http.get("/admin/workers/unlucky")).json()["state"] == "crash-looping"
    assert (await http.post("/admin/workers/unlucky/clear")).status_code == 200
    assert (await http.get("/admin/workers/unlucky")).json()["state"] == "lost"
    assert (await http.post("/admin/workers/unlucky/clear")).status_code == 409
    (event,) = await recorded(api, WorkerCleared)
    assert isinstance(event, WorkerCleared)
    assert event.requested_by == key_id
    answer = await http.post("/admin/workers/unlucky/kill")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_unreachable")


async def test_log_content(api: Gateway, admin: Admin) -> None:
    _, http = admin
    levels: list[Level] = ["info", "warning", "error", "info", "critical", "debug"]
    async with api.store() as store:
        for number, level in enumerate(levels):
            line = LogLine(
                time=datetime(2026, 1, 2, tzinfo=UTC), level=level, source="agent",
                message=f"line {number}",
            )  # fmt: skip
            await store.js.publish(subjects.log(GONE), msgspec.json.encode(line), timeout=60.0)
    path = "/admin/worker-logs/content"
    content = (await http.get(path, params={"worker": GONE, "tail": 5})).json()
    assert set(content) == {"logs", "total_lines", "error_count", "warning_count"}
    assert [one["message"] for one in content["logs"]] == [f"line {n}" for n in range(1, 6)]
    assert content["logs"][0]["level"] == "warning"
    assert (content["total_lines"], content["error_count"], content["warning_count"]) == (6, 2, 1)
    errors = (await http.get(path, params={"worker": GONE, "level": "error"})).json()
    assert [one["message"] for one in errors["logs"]] == ["line 2", "line 4"]
    everybody = (await http.get(path, params={"tail": 0})).json()
    assert everybody["logs"] == []
    assert everybody["total_lines"] >= 6
    for wrong in ({"tail": -1}, {"tail": "x"}, {"level": "loud"}):
        assert (await http.get(path, params=wrong)).status_code == 400


async def test_the_document_has_it(admin: Admin) -> None:
    _, http = admin
    document = (await http.get("/openapi.json")).json()
    for method, path in ROUTES[1:]:
        generic = path.replace("worker-1", "{worker}")
        assert document["paths"][generic][method.lower()]["security"] == [{"key": []}]


async def test_orders_reach_the_worker_and_name_the_key(api: Gateway, admin: Admin) -> None:
    key_id, http = admin
    answer = await http.post("/admin/workers/worker-1/kill")
    assert answer.status_code == 200, answer.text
    (event,) = await recorded(api, WorkerEngineKilled)
    assert isinstance(event, WorkerEngineKilled)
    assert event.requested_by == key_id
    path = "/admin/workers/worker-1"
    old = (await http.get(path)).json()["worker_id"]
    answer = await http.post(f"{path}/restart", params={"now": True})
    assert answer.status_code == 200, answer.text
    async with asyncio.timeout(60):
        while True:  # the condition is at another process
            worker = (await http.get(path)).json()
            if worker["worker_id"] != old and worker["state"] == "ready":
                break
            await asyncio.sleep(0.05)
