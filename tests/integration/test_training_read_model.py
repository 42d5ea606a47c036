"""Training runs and datasets in Postgres: the rows that the log says, again after a rebuild."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr
from tests.facts import START, append

from vllm_batch.clock import ManualClock
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    TrainingCompleted,
    TrainingDatasetCreated,
    TrainingEvaluated,
    TrainingFailed,
    TrainingPrepared,
    TrainingProgressed,
    TrainingPromoted,
    TrainingRequested,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.postgres.connection import connect
from vllm_batch.projections import rebuild
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings


async def some_history(store: EventStore) -> None:
    """A run that failed, and the one that was promoted after it."""
    requested = TrainingRequested(
        run_id="run_1", project="7", trigger="annotations", requested_by="rule"
    )
    await append(
        store,
        requested,
        TrainingFailed(run_id="run_1", reason="killed", retryable=True),
        TrainingRequested(
            run_id="run_2", project="7", trigger="retry", requested_by="rule",
            retry_of="run_1", attempt=2,
        ),
        TrainingDatasetCreated(
            dataset_id="ds_1", project="7", format="sft", train_blob="t", validation_blob="v",
            train_examples=20, validation_examples=4, held_out=12, sha256="ab",
        ),
        TrainingPrepared(
            run_id="run_2", project="7", dataset_id="ds_1", train_blob="t", validation_blob="v",
            base_model="small", base_source="/small", alias="sentiment",
        ),
        TrainingStarted(run_id="run_2", trainer=WorkerId("trainer_1"), trainer_name="trainer"),
        TrainingProgressed(run_id="run_2", step=9, steps=9, epoch=3, loss=0.25),
        TrainingProgressed(run_id="run_2", step=9, steps=9, epoch=3, validation_loss=0.5),
        TrainingCompleted(run_id="run_2", adapter_blob="adapters/run_2", loss=0.25, seconds=20),
    )  # fmt: skip
    numbers: dict[str, Any] = {
        "run_id": "run_2",
        "project": "7",
        "model": "sentiment-2",
        "replaced": "small",
    }
    await append(
        store,
        TrainingEvaluated(**numbers, before=0.5, after=1.0, tasks=12),
        TrainingPromoted(**numbers, before=0.5, after=1.0, tasks=12),
    )


async def test_runs_and_datasets_are_rows(tmp_path: Path, postgres_dsn: str) -> None:
    settings = Settings(home=tmp_path, postgres_dsn=SecretStr(postgres_dsn))
    store = MemoryEventStore(clock=ManualClock(START))
    await some_history(store)
    for seq in range(1, await store.last_sequence() + 1):  # so each row is loaded and saved again
        await Projector(store, settings).catch_up(seq)
    async with connect(settings) as connection:
        failed, promoted = await connection.fetch("SELECT * FROM training_run ORDER BY run_id")
        (dataset,) = await connection.fetch("SELECT * FROM training_dataset")
    assert (failed["status"], failed["reason"]) == ("failed", "killed")
    assert (promoted["status"], promoted["retry_of"], promoted["attempt"]) == (
        "promoted", "run_1", 2,
    )  # fmt: skip
    assert (promoted["step"], promoted["loss"], promoted["trainer_name"]) == (9, 0.25, "trainer")
    assert (promoted["replaced"], promoted["before"], promoted["after"]) == ("small", 0.5, 1.0)
    assert (dataset["dataset_id"], dataset["held_out"]) == ("ds_1", 12)
    found = await rebuild.verify(store, settings, progress=lambda _done, _of: None)
    assert found.identical, found.tables
