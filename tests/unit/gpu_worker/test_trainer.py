"""The trainer on a log in memory: what it takes, what it waits for, what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.facts import append, submitted

from batch_gpu_worker.trainer import trainer as trainer_module
from batch_gpu_worker.trainer.fine_tune import finite
from batch_gpu_worker.trainer.trainer import Trainer
from batch_gpu_worker.trainer.training_process import Step
from vllm_batch import tasks, training_runs
from vllm_batch.aggregates.training import Run, RunStatus
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import BlobError
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    TrainingCompleted,
    TrainingPrepared,
    TrainingRequested,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.settings import Settings

RUN, NAME, ID = "run_1", "t", WorkerId("trainer_2")
REQUESTED = TrainingRequested(run_id=RUN, project="1", trigger="command", requested_by="me")


def prepared(base: str = "/small") -> TrainingPrepared:
    return TrainingPrepared(
        run_id=RUN, project="1", dataset_id="ds", train_blob="t", validation_blob="v",
        base_model="small", base_source=base, alias="sentiment",
    )  # fmt: skip


class Scene:
    """A trainer, and a log that it reads."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.store = MemoryEventStore()
        self.settings = Settings(home=folder, worker_name=NAME, **settings)
        self.blobs = open_blobs(f"file://{folder}/blobs")
        self.trainer = Trainer(
            self.settings,
            self.store,
            self.blobs,
            python=Path("missing"),
            trainer_id=ID,
            clock=SystemClock(),
        )

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.trainer.run())
        try:
            yield
        finally:
            await tasks.end(running)

    async def until_ended(self, run_id: str) -> None:
        await self.until(lambda run: run.ended, run_id)

    async def until(self, wanted: Callable[[Run], bool], run_id: str = RUN) -> Run:
        """Return the run once it is as wanted."""
        async with asyncio.timeout(30):
            async for _ in self.store.follow(["training.>"]):
                run = (await training_runs.load(self.store)).runs[run_id]
                if wanted(run):
                    return run
        raise AssertionError("unreachable")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "RETRY_SECONDS", 0.01)


async def test_a_base_that_cannot_be_had_now_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, asked = Scene(tmp_path), 0

    async def locate(_: object, source: str) -> str:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise BlobError("away")
        return source

    monkeypatch.setattr("batch_gpu_worker.model_folders.ModelFolders.locate", locate)
    await append(scene.store, REQUESTED, prepared())
    async with scene.working():
        await scene.until(lambda run: run.started is not None)
    assert asked == 3


async def test_a_base_that_is_not_there_fails_the_run_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await append(scene.store, REQUESTED, prepared("blob:models/none"))
    async with scene.working():
        run = await scene.until(lambda run: run.ended)
    assert run.started is None
    assert run.failed is not None
    assert "nothing under models/none" in run.failed.reason


async def test_a_trainer_that_waits_for_batches_has_taken_the_run_and_says_so(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, training_idle_seconds=60, training_silent_seconds=0.04)
    await append(scene.store, submitted("batch_1"), REQUESTED, prepared())
    async with scene.working():
        run = await scene.until(lambda run: run.progress is not None)
    assert run.status is RunStatus.RUNNING
    assert run.progress is not None
    assert run.progress.steps == 0


async def test_whatever_goes_wrong_is_the_reason_why_a_run_failed(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for part in ("t", "v"):
        await scene.blobs.put(part, b"")
    (tmp_path / "training" / RUN / "adapter").mkdir(parents=True)  # in the way
    await append(scene.store, REQUESTED, prepared())
    async with scene.working():
        run = await scene.until(lambda run: run.ended)
    assert run.failed is not None
    assert run.failed.retryable
    assert "FileExistsError" in run.failed.reason


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_a_loss_that_is_no_number_is_reported_as_none(loss: float | None) -> None:
    line = {"step": 1, "steps": 2, "epoch": 0.5, "loss": finite(loss)}
    assert msgspec.json.decode(json.dumps(line), type=Step).loss is None
    assert finite(0.5) == 0.5


EARLIER = WorkerId("trainer_1")
STARTED = TrainingStarted(run_id=RUN, trainer=EARLIER, trainer_name=NAME)
COMPLETED = TrainingCompleted(run_id=RUN, adapter_blob="adapters/run_1", loss=0.1, seconds=3)


@pytest.mark.parametrize("said", [[], [COMPLETED]])
async def test_a_trainer_that_starts_again_gives_up_what_it_had_and_not_what_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[TrainingCompleted]
) -> None:
    follow = MemoryEventStore.follow

    async def one_by_one(store: MemoryEventStore, *args: Any, **kw: Any) -> Any:
        async for batch in follow(store, *args, **kw):
            for recorded in batch:
                yield [recorded]

    monkeypatch.setattr(MemoryEventStore, "follow", one_by_one)
    scene = Scene(tmp_path)
    await append(scene.store, REQUESTED, prepared(), STARTED, *said)
    later = msgspec.structs.replace(REQUESTED, run_id="run_2", project="2")
    await append(scene.store, later, msgspec.structs.replace(prepared("blob:none"), run_id="run_2"))
    async with scene.working():
        await scene.until_ended("run_2")
    run = (await training_runs.load(scene.store)).runs[RUN]
    assert run.status is (RunStatus.COMPLETED if said else RunStatus.FAILED)


async def test_a_run_that_completed_meanwhile_is_not_failed(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await append(scene.store, REQUESTED, prepared(), STARTED)
    run = (await training_runs.load(scene.store)).runs[RUN]
    await training_runs.record(scene.store, COMPLETED, trainer=EARLIER)
    await scene.trainer._fail(run, "started again", retryable=True)
    run = (await training_runs.load(scene.store)).runs[RUN]
    assert run.status is RunStatus.COMPLETED
