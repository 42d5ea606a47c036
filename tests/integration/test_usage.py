"""Usage and cost in the read models, over the API and on the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from tests.facts import CREATED, PROJECT, START, append, planned, progressed, submitted
from tests.gateway_bench import Gateway, gateway
from tests.integration.test_api_cli import Answer

from vllm_batch import api_keys, ids
from vllm_batch.clock import ManualClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import Effort, ModelPriced, ModelRegistered, Usage
from vllm_batch.events.usage import UsageRecorded
from vllm_batch.ids import JobId, KeyId, ProjectId
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings
from vllm_batch.tasks import end
from vllm_batch.usage_report import add_up

DAY = 24 * 3600


def registered(price: tuple[float, float]) -> ModelRegistered:
    return ModelRegistered(
        model_key=ids.model_key("m"), name="m", source="x/m", requested_by="test",
        input_price_per_million=price[0], output_price_per_million=price[1],
    )  # fmt: skip


def priced(price: tuple[float, float]) -> ModelPriced:
    return ModelPriced(
        model_key=ids.model_key("m"), input_price_per_million=price[0],
        output_price_per_million=price[1], requested_by="test",
    )  # fmt: skip


def online(number: int, project: str = PROJECT) -> UsageRecorded:
    return UsageRecorded(
        meter_id="api_1", number=number, project=ProjectId(project), key_id=KeyId("key_1"),
        model="m", requests=3, failed=1, usage=Usage(1_000_000, 0, 500_000, 0),
    )  # fmt: skip


@asynccontextmanager
async def projecting(store: MemoryEventStore, settings: Settings) -> AsyncIterator[ReadModels]:
    task = asyncio.create_task(Projector(store, settings).run())
    try:
        async with ReadModels.connect(settings) as models, asyncio.timeout(120):
            while models.seq < await store.last_sequence():
                await asyncio.sleep(0.02)
            yield models
    finally:
        await end(task)


async def test_tokens_cost_what_they_cost_when_they_were_used(
    tmp_path: Path, postgres_dsn: str
) -> None:
    clock = ManualClock(START)
    store = MemoryEventStore(clock=clock)
    settings = Settings(home=tmp_path, postgres_dsn=SecretStr(postgres_dsn))
    await append(store, registered((2.0, 10.0)), submitted("batch_1"), planned("batch_1", 0))
    await append(store, planned("batch_1", 1))
    clock.advance(10)
    await append(store, progressed("batch_1", 0, 4, 1, Effort(2.0, 4.0, 800.0)), online(1))
    clock.advance(DAY)
    await append(store, priced((20.0, 100.0)))
    clock.advance(10)
    await append(store, progressed("batch_1", 1, 6, 0, Effort(1.5, 3.0, 600.0)))
    await append(store, online(2), online(3, "other"))
    async with projecting(store, settings) as models:
        found = await models.usage(0, CREATED + 10 * DAY)
        rows = sorted(found, key=lambda row: (row.day, row.project, row.kind))
        assert [(row.day, row.project, row.kind, row.requests, row.failed) for row in rows] == [
            ("2026-01-02", PROJECT, "batch", 4, 1),
            ("2026-01-02", PROJECT, "online", 3, 1),
            ("2026-01-03", PROJECT, "batch", 6, 0),
            ("2026-01-03", PROJECT, "online", 3, 1),
            ("2026-01-03", "other", "online", 3, 1),
        ]
        costs = [row.cost for row in rows]
        old = (20 * 2.0 + 8 * 10.0) / 1e6
        new = (30 * 20.0 + 12 * 100.0) / 1e6
        assert costs == pytest.approx([old, 7.0, new, 70.0, 70.0])
        only = await models.usage(CREATED + DAY, CREATED + 2 * DAY, ProjectId("other"))
        assert [row.project for row in only] == ["other"]
        [batch] = await models.batch_usage([JobId("batch_1")])
        assert batch.cost == pytest.approx(old + new)
        assert (batch.input_tokens, batch.output_tokens) == (50, 20)
        assert (batch.engine_seconds, batch.gpu_seconds, batch.energy_joules) == (3.5, 7.0, 1400.0)
        assert [row.gpu_seconds for row in rows] == [4.0, 0.0, 3.0, 0.0, 0.0]
        by_batch = await models.usage(0, CREATED + 10 * DAY, by_batch=True)
        lines = {line.batch: line for line in add_up(by_batch, ["batch"])}
        assert set(lines) == {"batch_1", None}
        assert lines["batch_1"].energy_joules == 1400.0
        assert lines["batch_1"].cost == pytest.approx(old + new)


async def test_a_project_sees_its_own_and_an_admin_all(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    mine, theirs = ids.new("p"), ids.new("p")
    with gateway(tmp_path_factory.mktemp("usage")) as api:
        key = await api.new_key(mine)
        async with api.store() as store:
            _, admin = await api_keys.create(store, scopes=[api_keys.ADMIN])
            await append(store, registered((1.0, 1.0)), online(1, theirs), online(2, mine))
        await api.wait_until_known(admin)
        await shows(api, key, mine)
        async with api.http(key) as http:
            report = (await http.get("/usage", params={"group_by": "project"})).json()
            assert [line["project"] for line in report["data"]] == [mine]
            assert report["total"]["cost"] == pytest.approx(1.5)
            assert "day" not in report["total"]
            wrong = await http.get("/usage", params={"group_by": "weather"})
            assert wrong.json()["error"]["param"] == "group_by"
        root = api.url.removesuffix("/v1")
        headers = {"authorization": f"Bearer {admin}"}
        async with httpx2.AsyncClient(base_url=root, headers=headers) as http:
            report = (await http.get("/admin/usage", params={"group_by": "project"})).json()
            assert {line["project"] for line in report["data"]} == {mine, theirs}
            text = (await http.get("/admin/usage", params={"format": "csv"})).text
            assert text.splitlines()[0].startswith("day,project,model,requests")
            assert len(text.splitlines()) == 3
        said = Answer(api.stack, "usage", "--by", "project", "--json")
        assert {line["project"] for line in json.loads(said.out)} == {mine, theirs}
        table = Answer(api.stack, "usage", "--by", "project,model")
        assert table.out.splitlines()[-1].startswith("total\t")
        assert "3.0000" in table.out.splitlines()[-1]


async def shows(api: Gateway, key: str, project: str) -> None:
    """Wait until the read models have the project's usage."""
    async with asyncio.timeout(120), api.http(key) as http:
        while not (await http.get("/usage", params={"group_by": "project"})).json().get("data"):
            await asyncio.sleep(0.02)
