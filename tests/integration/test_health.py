"""The health report on real parts: what is wrong is said in words, by the command and the API."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from tests.facts import append, submitted
from tests.gateway_bench import Gateway, gateway

from vllm_batch import api_keys, backup_records, ids
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    ChunkPlanned,
    JobStarted,
    JobStuck,
    WorkerCrashLooping,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
)
from vllm_batch.events.project import ProjectBudgetReached, ProjectConfigured
from vllm_batch.events.webhook import WebhookEndpointCreated, WebhookEndpointDisabled
from vllm_batch.ids import JobId, ProjectId, WorkerId
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging.leadership import Leadership
from vllm_batch.project_limits import month_of

Problems = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("health") / "home", lease_seconds=1.0) as running:
        yield running


@pytest.fixture
async def store(api: Gateway) -> AsyncIterator[JetStreamEventStore]:
    async with api.store() as store:
        yield store


async def asked(api: Gateway, **headers: str) -> httpx2.Response:
    async with api.store() as store:
        _, secret = await api_keys.create(store, scopes=(api_keys.ADMIN,))
    await api.wait_until_known(secret)
    url = api.url.removesuffix("/v1")
    given = {"authorization": f"Bearer {secret}"} | headers
    async with httpx2.AsyncClient(base_url=url, headers=given, timeout=20) as http:
        return await http.get("/admin/health")


def by_check(report: dict[str, Any]) -> Problems:
    return {check["name"]: check["problems"] for check in report["checks"]}


async def worker(store: JetStreamEventStore, name: str, *models: str) -> WorkerId:
    worker_id = WorkerId(ids.new("worker_"))
    started = WorkerStarted(
        worker_id=worker_id, name=name, host="box", pid=1, engine="vllm", version="1"
    )
    await append(store, started)
    if models:
        ready = WorkerReady(worker_id=worker_id, models=list(models), in_flight_max=8)
        await append(store, ready)
    return worker_id


async def test_what_the_log_says_is_wrong_is_said_in_words(
    api: Gateway, store: JetStreamEventStore
) -> None:
    looping = await worker(store, "looping")
    await append(
        store, WorkerLost(worker_id=looping, reason="silent"),
        WorkerCrashLooping(worker_id=looping, restarts=5, window_seconds=600.0),
    )  # fmt: skip
    lost = await worker(store, "lost", "m")
    await append(store, WorkerLost(worker_id=lost, reason="silent"))
    job_id = JobId(ids.new("batch_"))
    planned = ChunkPlanned(
        job_id=job_id, chunk=0, blob="b", offset=0, length=1, first_line=1, count=7,
        endpoint="/v1/chat/completions", model="big",
    )  # fmt: skip
    await append(
        store, submitted(job_id), planned,
        JobStarted(job_id=job_id, total=7, chunks=1, model="big"),
        JobStuck(job_id=job_id, reason="no_worker", detail="no worker serves big", idle_seconds=9),
    )  # fmt: skip
    endpoint = ids.new("we_")
    created = WebhookEndpointCreated(
        endpoint_id=endpoint, project=ProjectId("default"), name="mine", url="https://x.test/",
        event_types=["batch.completed"],
    )  # fmt: skip
    await append(
        store, created, WebhookEndpointDisabled(endpoint_id=endpoint, reason="failing", detail="d")
    )
    project = ProjectId("etl")
    key, month = ids.project_key(project), month_of(datetime.now(UTC))
    await append(
        store,
        ProjectConfigured(
            project_key=key,
            project=project,
            budget_per_month=10,
            budget_stops=True,
            requested_by="test",
        ),
        ProjectBudgetReached(
            project_key=key,
            project=project,
            month=month,
            share=1.0,
            spent=11,
            budget=10,
            requested_by="orchestrator",
        ),
    )
    report = (await asked(api)).json()
    assert report["status"] == "failing"
    found = by_check(report)
    words = {problem["what"]: problem for problem in found["workers"]}
    assert words["Worker looping dies again and again (1 time) and is left alone."]["action"] == (
        "`vllm-batch worker logs --worker looping` has its last words; mend that, then "
        "`vllm-batch worker clear looping`."
    )
    assert any(what.startswith("Worker lost on box is gone (silent)") for what in words)
    assert "No worker is ready: nothing is computed." in words
    (no_worker,) = found["models"]
    assert no_worker["severity"] == "critical"
    assert no_worker["what"] == ("7 requests in 1 batch wait for 'big', which no worker serves.")
    assert [one["what"] for one in found["batches"]] == [
        f"{job_id} does not move: no worker serves big."
    ]
    (disabled,) = found["webhooks"]
    assert "mine of project default was disabled: failing: d." in disabled["what"]
    assert endpoint in disabled["action"]
    (spent,) = found["budgets"]
    assert spent["what"] == f"Project etl has spent its budget of {month}: its calls are refused."
    assert [one["severity"] for one in found["leaders"]] == ["critical", "warning"]
    assert found["read models"] == found["storage"] == found["event log"] == []


async def test_leaders_and_backups_are_seen(api: Gateway, store: JetStreamEventStore) -> None:
    patient = api.settings.model_copy(update={"leader_lease_seconds": 600.0})
    bucket = await Leadership(store.js, patient, role="x", owner="y")._bucket()
    for role in ("orchestrator", "watchdog"):
        await bucket.put(role, b"somebody")
    report = (await asked(api)).json()
    summaries = {check["name"]: check["summary"] for check in report["checks"]}
    assert summaries["leaders"] == "orchestrator and watchdog"
    assert summaries["backup"].startswith("none is on record")
    await backup_records.note(store, "/mnt/monday", made_by="ada")
    report = (await asked(api)).json()
    summaries = {check["name"]: check["summary"] for check in report["checks"]}
    assert summaries["backup"].startswith("last one 20")


async def test_a_browser_gets_a_page_and_may_give_the_key_as_a_password(
    api: Gateway, store: JetStreamEventStore
) -> None:
    html = {"accept": "text/html,application/xhtml+xml"}
    answer = await asked(api, **html)
    assert answer.headers["content-type"].startswith("text/html")
    assert "script" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "Postgres" in answer.text or "read models" in answer.text
    _, admin = await api_keys.create(store, scopes=(api_keys.ADMIN,))
    _, plain = await api_keys.create(store)
    await api.wait_until_known(plain)

    def basic(secret: str) -> dict[str, str]:
        return {"authorization": f"Basic {base64.b64encode(f'me:{secret}'.encode()).decode()}"}

    root = api.url.removesuffix("/v1")
    async with httpx2.AsyncClient(base_url=root, timeout=20) as http:
        nobody = await http.get("/admin/health", headers=html)
        assert nobody.status_code == 401
        assert nobody.headers["www-authenticate"].startswith("Basic realm=")
        assert (await http.get("/admin/health")).headers["www-authenticate"] == "Bearer"
        assert (await http.get("/admin/health", headers=basic(admin) | html)).status_code == 200
        assert (await http.get("/admin/health", headers=basic(plain))).status_code == 403
        for method, path in (
            ("GET", "/admin/workers"), ("POST", "/admin/health"), ("POST", "/v1/batches"),
        ):  # fmt: skip
            refused = await http.request(method, path, headers=basic(admin))
            assert refused.status_code == 401, path


@pytest.mark.timeout(900)
def test_the_command_follows_what_breaks_and_what_comes_back(tmp_path: Any) -> None:
    home = tmp_path / "home"
    with LocalStack(home) as stack:

        def look(met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            deadline = time.monotonic() + 150
            while True:
                done = subprocess.run(
                    (sys.executable, "-m", "vllm_batch.cli", "health", "--json",
                     "--home", str(home)),
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                report: dict[str, Any] = json.loads(done.stdout)
                assert done.returncode == (report["status"] == "failing"), done.stderr
                if met(report):
                    return report
                assert time.monotonic() < deadline, report

        look(lambda report: report["status"] == "ok")
        stack.service("postgres").hold()
        report = look(lambda report: report["status"] == "degraded")
        assert "lists answer 503" in by_check(report)["read models"][0]["what"]
        stack.service("nats").hold()
        report = look(lambda report: report["status"] == "failing")
        assert [check["name"] for check in report["checks"]] == ["event log"]
        stack.service("nats").release()
        stack.service("postgres").release()
        look(lambda report: report["status"] == "ok")
