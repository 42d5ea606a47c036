from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace
from tests.facts import append

from vllm_batch import ids, model_orders, model_registry, training_runs
from vllm_batch.aggregates.training import RunStatus
from vllm_batch.clock import ManualClock
from vllm_batch.errors import AlreadyDone, LeaseLost, NotFound, Rejected
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    ModelReady,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingPrepared,
    TrainingProgressed,
    TrainingPromoted,
    TrainingRejected,
    TrainingRequested,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.model_orders import Registration

RUN = "run_1"
ONE, TWO = WorkerId("trainer_1"), WorkerId("trainer_2")
REQUESTED = TrainingRequested(run_id=RUN, project="1", trigger="command", requested_by="me")
PREPARED = TrainingPrepared(
    run_id=RUN, project="1", dataset_id="ds_1", train_blob="t", validation_blob="v",
    base_model="small", base_source="/small", alias="sentiment",
)  # fmt: skip
PROGRESSED = TrainingProgressed(run_id=RUN, step=1, steps=2)
COMPLETED = TrainingCompleted(run_id=RUN, adapter_blob="adapters/run_1", loss=0.1, seconds=3)
FAILED = TrainingFailed(run_id=RUN, reason="killed", retryable=True)
NUMBERS: dict[str, Any] = {
    "run_id": RUN, "project": "1", "model": "new", "replaced": "small",
    "before": 0.5, "after": 0.9, "tasks": 10,
}  # fmt: skip
EVALUATED = TrainingEvaluated(**NUMBERS)


def started(trainer: WorkerId) -> TrainingStarted:
    return TrainingStarted(run_id=RUN, trainer=trainer, trainer_name="t")


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore(clock=ManualClock(datetime(2026, 1, 1, tzinfo=UTC)))


async def begin(store: MemoryEventStore) -> None:
    await training_runs.record(store, REQUESTED)
    await training_runs.record(store, PREPARED)
    await training_runs.record(store, started(ONE), trainer=ONE)


async def test_a_run_goes_from_wish_to_promotion(store: MemoryEventStore) -> None:
    await begin(store)
    await training_runs.record(store, PROGRESSED, trainer=ONE)
    await training_runs.record(store, PROGRESSED, trainer=ONE)
    await training_runs.record(store, COMPLETED, trainer=ONE)
    await training_runs.record(store, EVALUATED)
    run = await training_runs.record(store, TrainingPromoted(**NUMBERS))
    assert run.status is RunStatus.PROMOTED
    assert (await training_runs.load(store)).runs == {RUN: run}


async def test_a_trainer_that_was_given_up_cannot_say_any_more(store: MemoryEventStore) -> None:
    await begin(store)
    await training_runs.record(store, FAILED)
    for said in (PROGRESSED, COMPLETED):
        with pytest.raises(LeaseLost):
            await training_runs.record(store, said, trainer=ONE)
    assert (await training_runs.load(store)).runs[RUN].status is RunStatus.FAILED


async def test_one_of_two_trainers_gets_a_run(store: MemoryEventStore) -> None:
    await begin(store)
    with pytest.raises(Rejected):
        await training_runs.record(store, started(TWO), trainer=TWO)
    with pytest.raises(LeaseLost):
        await training_runs.record(store, COMPLETED, trainer=TWO)


async def test_nothing_is_promoted_that_was_not_measured_so(store: MemoryEventStore) -> None:
    await begin(store)
    promoted = TrainingPromoted(**NUMBERS)
    with pytest.raises(Rejected):
        await training_runs.record(store, promoted)
    await training_runs.record(store, COMPLETED, trainer=ONE)
    with pytest.raises(Rejected):
        await training_runs.record(store, promoted)
    await training_runs.record(store, EVALUATED)
    with pytest.raises(Rejected, match="measured"):
        await training_runs.record(store, TrainingPromoted(**{**NUMBERS, "after": 1.0}))
    await training_runs.record(store, TrainingRejected(**NUMBERS, reason="no"))
    with pytest.raises(Rejected):
        await training_runs.record(store, promoted)


async def test_what_was_said_is_not_said_again(store: MemoryEventStore) -> None:
    await begin(store)
    with pytest.raises(AlreadyDone):
        await training_runs.record(store, REQUESTED)
    await training_runs.record(store, COMPLETED, trainer=ONE)
    await training_runs.record(store, EVALUATED)
    with pytest.raises(AlreadyDone):
        await training_runs.record(store, EVALUATED)


async def test_a_run_is_cancelled_until_it_is_trained_and_its_trainer_hears_of_it(
    store: MemoryEventStore,
) -> None:
    with pytest.raises(NotFound):
        await training_runs.cancel(store, RUN, requested_by="me")
    await begin(store)
    run = await training_runs.cancel(store, RUN, requested_by="me")
    assert run.failed == TrainingFailed(run_id=RUN, reason="cancelled by me")
    with pytest.raises(LeaseLost):
        await training_runs.record(store, PROGRESSED, trainer=ONE)
    with pytest.raises(Rejected, match="failed"):
        await training_runs.cancel(store, RUN, requested_by="me")


async def test_a_run_that_is_trained_is_judged_and_not_cancelled(store: MemoryEventStore) -> None:
    await begin(store)
    await training_runs.record(store, COMPLETED, trainer=ONE)
    with pytest.raises(Rejected, match="until it is trained"):
        await training_runs.cancel(store, RUN, requested_by="me")


async def rejected(store: MemoryEventStore) -> None:
    """Have a run end with a model that is not better, while an older one answers."""
    await begin(store)
    await training_runs.record(store, COMPLETED, trainer=ONE)
    await training_runs.record(store, EVALUATED)
    await training_runs.record(store, TrainingRejected(**NUMBERS, reason="no"))
    for name, aliases in (("small", []), ("newer than small", ["sentiment"]), ("new", [])):
        model = Registration(name=name, source="/a/folder", aliases=aliases)
        await model_orders.register(store, model, requested_by="me")


async def ready(store: MemoryEventStore) -> None:
    ready = ModelReady(model_key=ids.model_key("new"), worker_id=WorkerId("w"), worker_name="w")
    await append(store, ready)


async def meaning(store: MemoryEventStore) -> str | None:
    return (await model_registry.load(store)).resolve("sentiment")


async def test_what_a_person_promotes_is_rolled_back_to_what_answered_before(
    store: MemoryEventStore,
) -> None:
    await rejected(store)
    await ready(store)
    for _ in range(2):  # what was rolled back may be promoted again
        run = await training_runs.promote(store, RUN, requested_by="me")
        assert (run.status, await meaning(store)) == (RunStatus.PROMOTED, "new")
        run = await training_runs.roll_back(store, "1", requested_by="me")
        assert (run.status, await meaning(store)) == (RunStatus.ROLLED_BACK, "newer than small")


async def test_a_promotion_by_hand_that_died_after_the_move_is_recorded_when_done_again(
    store: MemoryEventStore,
) -> None:
    await rejected(store)
    await ready(store)
    await model_orders.alias(store, "new", add=["sentiment"], requested_by="me", force=True)
    run = await training_runs.promote(store, RUN, requested_by="me")
    assert run.status is RunStatus.PROMOTED
    with pytest.raises(Rejected, match="promoted"):
        await training_runs.promote(store, RUN, requested_by="me")


async def test_clients_do_not_wait_for_a_promotion_by_hand(store: MemoryEventStore) -> None:
    await rejected(store)
    for _ in range(2):
        with pytest.raises(Rejected, match="being loaded"):
            await training_runs.promote(store, RUN, requested_by="me")
    model = (await model_registry.load(store)).find("new")
    assert model is not None
    assert model.wanted
    assert await meaning(store) == "newer than small"


async def test_the_newest_promotion_is_rolled_back_not_that_of_the_newest_run(
    store: MemoryEventStore,
) -> None:
    await rejected(store)
    await ready(store)
    other = {"run_id": "run_2", "project": "1"}
    requested = TrainingRequested(**other, trigger="command", requested_by="me")
    await training_runs.record(store, requested)
    prepared = replace(PREPARED, run_id="run_2")
    started_anew = replace(started(ONE), run_id="run_2")
    numbers = {**NUMBERS, **other, "model": "newer than small"}
    await training_runs.record(store, prepared)
    await training_runs.record(store, started_anew, trainer=ONE)
    await training_runs.record(store, replace(COMPLETED, run_id="run_2"), trainer=ONE)
    await training_runs.record(store, TrainingEvaluated(**numbers))
    await training_runs.record(store, TrainingPromoted(**numbers))
    await training_runs.promote(store, RUN, requested_by="me")
    assert (await training_runs.roll_back(store, "1", requested_by="me")).run_id == RUN
    assert (await training_runs.roll_back(store, "1", requested_by="me")).run_id == "run_2"
    assert await meaning(store) == "small"
