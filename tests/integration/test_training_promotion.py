"""From numbers to a promotion over a real log, and what a crash in between leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.facts import append

from batch_gpu_worker.trainer.trainer import Trainer
from batch_labelstudio import predicting
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.feed import ProjectFeed
from batch_labelstudio.model_feed import ModelFeed
from batch_labelstudio.training import duty, judging
from vllm_batch import model_orders, model_registry, tasks, training_runs
from vllm_batch.aggregates.training import Run, RunStatus
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import ManualClock, SystemClock
from vllm_batch.errors import NotFound, Rejected
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    LabelingProjectConfigured,
    LabelingProjectDeleted,
    ModelAliased,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingPrepared,
    TrainingPromoted,
    TrainingRejected,
    TrainingRequested,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.model_orders import Registration
from vllm_batch.settings import Settings

ALIAS, BASE, NEW = "sentiment", "small", "sentiment-new"
TRAINER = WorkerId("trainer_1")
RUN = "run_1"
MEASURED = TrainingEvaluated(
    run_id=RUN, project="1", model=NEW, replaced=BASE, before=0.5, after=0.9, tasks=10
)
PREPARED = TrainingPrepared(
    run_id=RUN, project="1", dataset_id="ds_1", train_blob="t", validation_blob="v",
    base_model=BASE, base_source="/small", alias=ALIAS,
)  # fmt: skip


@asynccontextmanager
async def bridge_of(store: JetStreamEventStore, settings: Settings) -> AsyncIterator[Bridge]:
    """Yield a bridge that has just started: it knows what the log says."""
    feed, models = ProjectFeed(store), ModelFeed(store)
    await feed.load()
    await models.load()
    async with predicting.connected(settings) as predictor:
        yield Bridge(
            settings=settings,
            store=store,
            blobs=open_blobs(settings.blob_url),
            label_studio=None,
            feed=feed,
            models=models,
            predictor=predictor,
            clock=ManualClock(SystemClock().now()),
        )


@pytest.fixture
async def store(event_store: JetStreamEventStore) -> JetStreamEventStore:
    """A log with a base, an adapter of it, and an alias that means the base."""
    for wanted in (
        Registration(name=BASE, source="/small", aliases=[ALIAS]),
        Registration(name=NEW, source="blob:adapters/run_1", base=BASE, training_run=RUN),
    ):
        await model_orders.register(event_store, wanted, requested_by="test")
    await model_orders.load(event_store, NEW, requested_by="test")
    configured = LabelingProjectConfigured(
        project="1", template="classification", model=ALIAS, requested_by="test"
    )
    await append(event_store, configured)
    return event_store


async def run_until(store: JetStreamEventStore, measured: TrainingEvaluated | None) -> None:
    """Record a run up to its numbers, or, without them, up to where a trainer has it."""
    requested = TrainingRequested(run_id=RUN, project="1", trigger="command", requested_by="me")
    started = TrainingStarted(run_id=RUN, trainer=TRAINER, trainer_name="trainer")
    await append(store, requested, PREPARED, started)
    if measured is not None:
        made = TrainingCompleted(run_id=RUN, adapter_blob="adapters/run_1", loss=0.1, seconds=1)
        await append(store, made, measured)


async def look(store: JetStreamEventStore, settings: Settings, *, later: float = 0) -> Run:
    """Have a bridge that starts now look once; return the run."""
    async with bridge_of(store, settings) as bridge:
        assert isinstance(bridge.clock, ManualClock)
        bridge.clock.advance(later)
        runs = await training_runs.load(store)
        await duty.TrainingDuty(bridge, runs).look()
    return (await training_runs.load(store)).runs[RUN]


async def meaning(store: JetStreamEventStore) -> str | None:
    return (await model_registry.load(store)).resolve(ALIAS)


async def aliased(store: JetStreamEventStore) -> int:
    found = [e async for batch in store.read(subjects.every(ModelAliased)) for e in batch]
    return len(found)


async def test_better_is_promoted_and_rolled_back(
    store: JetStreamEventStore, settings: Settings
) -> None:
    await run_until(store, MEASURED)
    assert (await look(store, settings)).status is RunStatus.PROMOTED
    assert await meaning(store) == NEW
    run = await training_runs.roll_back(store, "1", requested_by="me")
    assert run.status is RunStatus.ROLLED_BACK
    assert await meaning(store) == BASE
    with pytest.raises(NotFound):
        await training_runs.roll_back(store, "1", requested_by="me")


async def test_not_better_is_rejected_and_taken_out_of_service(
    store: JetStreamEventStore, settings: Settings
) -> None:
    await run_until(store, msgspec.structs.replace(MEASURED, after=0.5))
    run = await look(store, settings)
    assert run.status is RunStatus.REJECTED
    assert run.rejected is not None
    assert "0.500 is not better than 0.500" in run.rejected.reason
    registry = await model_registry.load(store)
    assert registry.resolve(ALIAS) == BASE
    model = registry.find(NEW)
    assert model is not None
    assert not model.wanted


@pytest.mark.parametrize("measured", [None, MEASURED])
async def test_a_run_ends_with_its_project_wherever_it_is(
    store: JetStreamEventStore, settings: Settings, measured: TrainingEvaluated | None
) -> None:
    await run_until(store, measured)
    await append(store, LabelingProjectDeleted(project="1"))
    run = await look(store, settings)
    assert run.status is (RunStatus.REJECTED if measured else RunStatus.FAILED)
    assert await meaning(store) == BASE


async def test_a_bridge_killed_after_the_alias_moved_records_what_happened(
    store: JetStreamEventStore, settings: Settings
) -> None:
    await run_until(store, MEASURED)
    async with bridge_of(store, settings) as dying:  # moves the alias, and dies before the record
        assert isinstance(await judging.conclude(dying, MEASURED, ALIAS), TrainingPromoted)
    moves = await aliased(store)
    assert (await training_runs.load(store)).runs[RUN].status is RunStatus.EVALUATED
    assert (await look(store, settings)).status is RunStatus.PROMOTED
    assert (await aliased(store), await meaning(store)) == (moves, NEW)


async def test_an_alias_that_somebody_moved_meanwhile_is_left_alone(
    store: JetStreamEventStore, settings: Settings
) -> None:
    other = Registration(name="other", source="/other", aliases=[ALIAS])
    await model_orders.register(store, other, requested_by="a person", force=True)
    await run_until(store, MEASURED)
    async with bridge_of(store, settings) as bridge:
        said = await judging.conclude(bridge, MEASURED, ALIAS)
    assert isinstance(said, TrainingRejected)
    assert "means other now" in said.reason
    assert await meaning(store) == "other"


async def test_a_rollback_does_not_take_back_what_a_person_chose(
    store: JetStreamEventStore, settings: Settings
) -> None:
    await run_until(store, MEASURED)
    await look(store, settings)
    other = Registration(name="other", source="/other", aliases=[ALIAS])
    await model_orders.register(store, other, requested_by="a person", force=True)
    with pytest.raises(Rejected, match="means other now"):
        await training_runs.roll_back(store, "1", requested_by="me")


async def test_a_trainer_that_is_gone_loses_its_run(
    store: JetStreamEventStore, settings: Settings
) -> None:
    await run_until(store, None)
    limit = settings.training_silent_seconds
    assert (await look(store, settings, later=limit - 5)).status is RunStatus.RUNNING
    run = await look(store, settings, later=limit + 5)
    assert run.failed is not None
    assert run.failed.retryable


async def test_a_trainer_that_was_started_again_gives_up_what_it_had(
    store: JetStreamEventStore, settings: Settings
) -> None:
    await run_until(store, None)
    again = Trainer(
        settings.model_copy(update={"worker_name": "trainer"}),
        store,
        open_blobs(settings.blob_url),
        python=Path("unused"),
        trainer_id=WorkerId("trainer_2"),
        clock=SystemClock(),
    )
    working = asyncio.create_task(again.run())
    try:
        async with asyncio.timeout(120):
            subject = subjects.aggregate("training", RUN)
            async for batch in store.follow([subject]):
                said: list[Any] = [one.event for one in batch]
                if said[-1].TYPE == "training.failed":
                    break
    finally:
        await tasks.end(working)
    assert said[-1].retryable
