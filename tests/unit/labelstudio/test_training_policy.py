from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batch_labelstudio.training import policy
from vllm_batch import training_runs
from vllm_batch.aggregates.training import Run
from vllm_batch.clock import ManualClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationValidated,
    Event,
    LabelingProjectConfigured,
    TrainingFailed,
    TrainingPrepared,
    TrainingRequested,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.labeling import projects
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Scene:
    """A project in a log in memory."""

    def __init__(self, **configured: Any) -> None:
        self.clock = ManualClock(T0)
        self.store = MemoryEventStore(clock=self.clock)
        self.settings = Settings(
            home=Path("unused"), training_retries_max=2, training_ground_truth_min=2
        )
        self._configured = LabelingProjectConfigured(
            project="1", template="classification", model="a", requested_by="me", **configured
        )
        self._annotations = 0

    async def begin(self, *, truths: int = 2) -> Scene:
        await self.say(self._configured)
        await self.validate(truths, ground_truth=True)
        return self

    async def say(self, event: Event, expected: int = 0) -> int:
        return (await self.store.append(event, expected=expected)).seq

    async def validate(self, count: int, *, ground_truth: bool = False) -> None:
        for _ in range(count):
            self._annotations += 1
            name: dict[str, Any] = {"project": "1", "annotation": str(self._annotations)}
            made = AnnotationCreated(**name, task=name["annotation"], version=T0,
                                     ground_truth=ground_truth)  # fmt: skip
            seq = await self.say(made)
            await self.say(AnnotationValidated(**name, version=T0), seq)

    async def look(self) -> TrainingRequested | None:
        view, runs = await self._now()
        return policy.due(view, runs, self.clock.now(), self.settings)

    async def request_and_fail(self, *, retryable: bool) -> TrainingRequested:
        wish = await self.look()
        assert wish is not None
        await training_runs.record(self.store, wish)
        failed = TrainingFailed(run_id=wish.run_id, reason="killed", retryable=retryable)
        await training_runs.record(self.store, failed)
        return wish

    async def _now(self) -> tuple[ProjectView, list[Run]]:
        view = (await projects.load(self.store)).find("1")
        assert view is not None
        return view, (await training_runs.load(self.store)).of_project("1")


async def test_so_many_new_annotations_start_a_run_and_ground_truth_is_none_of_them() -> None:
    scene = await Scene(train_after=3).begin()
    await scene.validate(2)
    await scene.validate(5, ground_truth=True)
    assert await scene.look() is None
    await scene.validate(1)
    wish = await scene.look()
    assert wish is not None
    assert wish.trigger == "annotations"
    assert await scene.look() == wish, "two bridges that look ask for the same run"


async def test_what_could_not_be_measured_is_not_trained_until_it_can_be() -> None:
    scene = await Scene(train_after=3, train_every_seconds=60).begin(truths=1)
    await scene.validate(3)
    scene.clock.advance(60)
    assert await scene.look() is None
    await scene.validate(1, ground_truth=True)
    assert await scene.look() is not None, "nothing that was validated before is lost"


async def test_a_project_has_one_run_at_a_time_and_the_next_one_needs_new_annotations() -> None:
    scene = await Scene(train_after=2).begin()
    await scene.validate(4)
    wish = await scene.look()
    assert wish is not None
    await training_runs.record(scene.store, wish)
    await scene.validate(1)
    assert await scene.look() is None
    await training_runs.record(scene.store, TrainingFailed(run_id=wish.run_id, reason="no"))
    assert await scene.look() is None
    await scene.validate(1)
    again = await scene.look()
    assert again is not None
    assert again.run_id != wish.run_id


async def test_a_schedule_waits_for_its_time_and_for_something_new() -> None:
    scene = await Scene(train_every_seconds=3600).begin()
    assert await scene.look() is None
    await scene.validate(1)
    first = await scene.request_and_fail(retryable=False)
    assert first.trigger == "schedule"
    scene.clock.advance(3600)
    assert await scene.look() is None, "nothing is new"
    await scene.validate(1)
    assert await scene.look() is not None


async def test_a_run_whose_trainer_died_is_tried_again_so_often_and_no_more() -> None:
    scene = await Scene(train_after=1).begin()
    await scene.validate(1)
    wishes = [await scene.request_and_fail(retryable=True) for _ in range(3)]
    assert [wish.trigger for wish in wishes] == ["annotations", "retry", "retry"]
    assert [wish.retry_of for wish in wishes[1:]] == [wish.run_id for wish in wishes[:2]]
    assert await scene.look() is None


async def test_who_wants_no_training_gets_none() -> None:
    scene = await Scene().begin()
    await scene.validate(50)
    assert await scene.look() is None


@pytest.mark.parametrize(("seconds", "silent"), [(119, False), (121, True)])
async def test_a_trainer_that_says_nothing_has_lost_its_run(seconds: int, silent: bool) -> None:
    scene = await Scene(train_after=1).begin()
    await scene.validate(1)
    wish = await scene.look()
    assert wish is not None
    run = await training_runs.record(scene.store, wish)
    now = scene.clock.now() + timedelta(seconds=seconds)
    assert policy.is_silent(run, now, scene.settings) is silent


async def test_a_run_that_no_trainer_takes_is_left_but_not_while_one_trains_another() -> None:
    scene = await Scene(train_after=1).begin()
    await scene.validate(1)
    wish = await scene.look()
    assert wish is not None
    limit = scene.settings.training_wait_seconds
    run = await training_runs.record(scene.store, wish)
    scene.clock.advance(limit - 1)
    assert not policy.is_left(run, [run], scene.clock.now(), scene.settings)
    other = await another_run_that_is_trained(scene)
    scene.clock.advance(limit - 1)
    assert policy.is_left(run, [run], scene.clock.now(), scene.settings)
    assert not policy.is_left(run, [run, other], scene.clock.now(), scene.settings)
    scene.clock.advance(2)
    assert policy.is_left(run, [run, other], scene.clock.now(), scene.settings)


async def another_run_that_is_trained(scene: Scene) -> Run:
    wish = TrainingRequested(run_id="run_2", project="2", trigger="command", requested_by="me")
    prepared = TrainingPrepared(
        run_id="run_2", project="2", dataset_id="d", train_blob="t", validation_blob="v",
        base_model="b", base_source="/b", alias="a",
    )  # fmt: skip
    started = TrainingStarted(run_id="run_2", trainer=WorkerId("t_1"), trainer_name="t")
    run = await training_runs.record(scene.store, wish)
    for said in (prepared, started):
        run = await training_runs.record(scene.store, said)
    return run
