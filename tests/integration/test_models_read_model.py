"""Models in Postgres: their rows, what aliases mean, every price; and the same from the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from tests.facts import CREATED, START, append

from vllm_batch import ids, model_orders, model_registry, model_reports
from vllm_batch.clock import ManualClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import WorkerReady, WorkerStarted
from vllm_batch.events.model import ModelFailed, ModelLoading, ModelReady, ModelUnloaded
from vllm_batch.ids import WorkerId
from vllm_batch.model_orders import Registration
from vllm_batch.postgres.connection import connect
from vllm_batch.projections import from_log, rebuild
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings

W1, W2 = WorkerId("worker_1"), WorkerId("worker_2")
KEY = ids.model_key("tiny")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def store(clock: ManualClock) -> MemoryEventStore:
    return MemoryEventStore(clock=clock)


@pytest.fixture
def settings(tmp_path: Path, postgres_dsn: str) -> Settings:
    return Settings(home=tmp_path, postgres_dsn=SecretStr(postgres_dsn))


async def project(store: MemoryEventStore, settings: Settings) -> None:
    await Projector(store, settings).catch_up(await store.last_sequence())


async def rows(settings: Settings, query: str) -> list[dict[str, Any]]:
    async with connect(settings) as connection:
        return [dict(record) for record in await connection.fetch(query)]


async def some_history(store: MemoryEventStore, clock: ManualClock) -> None:
    """Two base models, an adapter, an alias that moves, prices that change, a retired model."""
    await append(
        store,
        WorkerStarted(worker_id=W1, name="gpu-1", host="h", pid=1, engine="vllm", version="1"),
        WorkerReady(worker_id=W1, models=["configured", "old"], in_flight_max=1),
    )
    clock.advance(10)
    for name, base in (("tiny", None), ("old", None), ("tiny-lora", "tiny")):
        wanted = Registration(name=name, source=f"org/{name}", base=base)
        await model_orders.register(store, wanted, requested_by="cli:me")
    await model_orders.alias(store, "tiny", add=["best", "small"], requested_by="cli:me")
    await model_orders.alias(store, "tiny-lora", add=["best"], force=True, requested_by="cli:me")
    await model_orders.price(
        store, "tiny", input_per_million=0.1, output_per_million=0.4, requested_by="cli:me"
    )
    clock.advance(60)
    await model_orders.price(
        store, "tiny", input_per_million=0.2, output_per_million=None, requested_by="cli:me"
    )
    await model_orders.load(store, "small", worker="gpu-1", requested_by="key_1")
    await model_orders.retire(store, "old", requested_by="key_1")


async def test_models_aliases_and_prices_are_in_the_tables(
    store: MemoryEventStore, settings: Settings, clock: ManualClock
) -> None:
    await some_history(store, clock)
    await project(store, settings)
    (row,) = await rows(settings, "SELECT * FROM registered_model WHERE name = 'tiny'")
    assert (row["model_key"], row["source"], row["wanted_on"]) == (KEY, "org/tiny", ["gpu-1"])
    aliases = await rows(settings, "SELECT alias, model FROM model_alias ORDER BY alias")
    assert aliases == [
        {"alias": "best", "model": "tiny-lora"},
        {"alias": "small", "model": "tiny"},
    ]
    prices = await rows(settings, "SELECT * FROM model_price WHERE model = 'tiny' ORDER BY since")
    assert [tuple(price.values()) for price in prices] == [
        ("tiny", CREATED + 10, CREATED + 10, None, None),
        ("tiny", CREATED + 10, CREATED + 70, 0.1, 0.4),
        ("tiny", CREATED + 70, None, 0.2, 0.4),
    ]


async def test_the_list_is_the_same_from_postgres_and_from_the_log(
    store: MemoryEventStore, settings: Settings, clock: ManualClock
) -> None:
    await some_history(store, clock)
    await project(store, settings)
    async with ReadModels.connect(settings) as models:
        listed = await models.models()
    assert listed == await from_log.models(store)
    assert [(row.name, row.root, row.parent) for row in listed] == [
        ("configured", None, None),
        ("best", "tiny-lora", None),
        ("small", "tiny", None),
        ("tiny", None, None),
        ("tiny-lora", None, "tiny"),
    ]
    aliases = await rows(settings, "SELECT alias, model FROM model_alias")
    known = (await model_registry.load(store)).aliases()
    assert {row["alias"]: row["model"] for row in aliases} == known


async def test_what_workers_report_is_in_the_table(
    store: MemoryEventStore, settings: Settings
) -> None:
    wanted = Registration(name="tiny", source="org/tiny")
    await model_orders.register(store, wanted, requested_by="cli:me")
    who: dict[str, Any] = {"model_key": KEY, "worker_id": W1, "worker_name": "gpu-1"}
    other: dict[str, Any] = {"model_key": KEY, "worker_id": W2, "worker_name": "gpu-2"}
    ready = ModelReady(load_seconds=2.5, **who)
    reports = (
        ModelLoading(**who), ready, ready, ModelLoading(**other),
        ModelFailed(reason="CUDA out of memory", **other),
    )  # fmt: skip
    recorded = [await model_reports.report(store, said) for said in reports]
    assert [one is not None for one in recorded] == [True, True, False, True, True]
    await project(store, settings)
    query = "SELECT worker_name, status, reason, load_seconds FROM model_on_worker ORDER BY 1"
    assert [tuple(row.values()) for row in await rows(settings, query)] == [
        ("gpu-1", "ready", None, 2.5),
        ("gpu-2", "failed", "CUDA out of memory", None),
    ]
    await model_reports.report(store, ModelUnloaded(reason="swapped", **who))
    await project(store, settings)
    unloaded = ("gpu-1", "unloaded", "swapped", None)
    assert tuple((await rows(settings, query))[0].values()) == unloaded


async def test_a_rebuild_makes_the_same_tables(
    store: MemoryEventStore, settings: Settings, clock: ManualClock
) -> None:
    await some_history(store, clock)
    # Event by event, so that every row is loaded, changed and saved again.
    for seq in range(1, await store.last_sequence() + 1):
        await Projector(store, settings).catch_up(seq)
    found = await rebuild.verify(store, settings, progress=lambda _done, _of: None)
    assert found.identical, found.tables
    counts = {table.table: table.live.rows for table in found.tables}
    assert counts["registered_model"] == 3
