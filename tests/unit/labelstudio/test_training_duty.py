"""The duty that takes training runs further, on a log in memory."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.bridge_bench import configured
from tests.facts import START, append
from tests.unit.labelstudio.bench import bridge_of

from batch_labelstudio.training import preparing
from batch_labelstudio.training.duty import TrainingDuty
from vllm_batch import training_runs
from vllm_batch.aggregates.training import Run, RunStatus
from vllm_batch.clock import ManualClock
from vllm_batch.errors import BatchError, BlobMissing, LabelStudioError
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationValidated,
    TrainingPrepared,
    TrainingRequested,
)
from vllm_batch.labeling.projects import ProjectView


def nobody(request: httpx.Request) -> httpx.Response:
    raise AssertionError(request)


def requested(run_id: str, project: str) -> TrainingRequested:
    return TrainingRequested(run_id=run_id, project=project, trigger="command", requested_by="test")


def prepared(run_id: str, project: str) -> TrainingPrepared:
    return TrainingPrepared(
        run_id=run_id, project=project, dataset_id="ds", train_blob="t", validation_blob="v",
        base_model="small", base_source="/small", alias="sentiment",
    )  # fmt: skip


async def test_a_run_that_no_trainer_takes_fails_and_says_how_to_start_one(tmp_path: Path) -> None:
    clock = ManualClock(START)
    store = MemoryEventStore(clock=clock)
    await append(store, configured("1"), requested("run_1", "1"), prepared("run_1", "1"))
    async with bridge_of(
        store, tmp_path, nobody, clock=clock, training_wait_seconds=60, training_retries_max=0
    ) as bridge:
        runs = await training_runs.load(store)
        duty = TrainingDuty(bridge, runs)
        clock.advance(59)
        await duty.look()
        assert (await training_runs.load(store)).runs["run_1"].status is RunStatus.PREPARED
        clock.advance(2)
        await duty.look()
    failed = (await training_runs.load(store)).runs["run_1"].failed
    assert failed is not None
    assert failed.retryable
    assert "start one with `python -m batch_gpu_worker trainer`" in failed.reason


@pytest.mark.parametrize("error", [LabelStudioError("no"), BlobMissing("no")])
async def test_a_project_that_cannot_be_trained_now_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BatchError
) -> None:
    async def prepare(_: object, view: ProjectView, run: Run) -> TrainingPrepared:
        if view.project.project == "1":
            raise error
        return prepared(run.run_id, "2")

    monkeypatch.setattr(preparing, "prepare", prepare)
    store = MemoryEventStore()
    await append(store, configured("1"), requested("run_1", "1"))
    await append(store, configured("2"), requested("run_2", "2"))
    await append(store, configured("3", train_every_seconds=60))
    name = {"project": "3", "version": START}
    for number in ("1", "2"):
        truth = number == "1"
        await append(
            store,
            AnnotationCreated(**name, annotation=number, task=number, ground_truth=truth),
            AnnotationValidated(**name, annotation=number),
        )
    async with bridge_of(store, tmp_path, nobody, training_ground_truth_min=1) as bridge:
        await TrainingDuty(bridge, await training_runs.load(store)).look()
    runs = await training_runs.load(store)
    assert runs.runs["run_1"].status is RunStatus.REQUESTED
    assert runs.runs["run_2"].status is RunStatus.PREPARED
    assert [run.requested.trigger for run in runs.of_project("3")] == ["schedule"]
