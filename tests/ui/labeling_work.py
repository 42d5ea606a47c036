"""A labeling project as the log has it after some work: annotations, measurements, runs."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from vllm_batch import model_orders
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationFlagged,
    AnnotationValidated,
    Event,
    LabelingAccuracyMeasured,
    LabelingProjectConfigured,
    LabelingProjectConnected,
    LabelingTasksCreated,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingPrepared,
    TrainingProgressed,
    TrainingPromoted,
    TrainingRejected,
    TrainingRequested,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.model_orders import Registration

PROJECT, ALIAS, TITLE = "7", "sentiment", "Reviews"
BASE, FIRST, SECOND = "acme/reviewer", "sentiment-one", "sentiment-two"
ANNOTATIONS = 24
FLAGGED_EVERY = 6
LABELS = ["negative", "neutral", "positive"]
_VERSION = datetime(2026, 1, 31, 12, tzinfo=UTC)


async def record(store: JetStreamEventStore) -> None:
    """Register the models and append it all."""
    base = await model_orders.register(store, _model(BASE), requested_by="cli")
    for name, aliases in ((FIRST, [ALIAS]), (SECOND, [])):
        adapter = _model(name, base=base.name, aliases=aliases)
        await model_orders.register(store, adapter, requested_by="training")
    ends: Counter[tuple[str, ...]] = Counter()
    for event in _events():
        key = (event.TYPE.partition(".")[0], *event.aggregate_id())
        ends[key] = (await store.append(event, expected=ends[key])).seq


def _model(name: str, **more: Any) -> Registration:
    return Registration(name=name, source=f"acme/{name.rpartition('/')[2]}", **more)


def _events() -> list[Event]:
    tasks = [str(100 + number) for number in range(ANNOTATIONS)]
    return [
        LabelingProjectConfigured(
            project=PROJECT, title=TITLE, template="classification", model=ALIAS, requested_by="cli"
        ),
        LabelingProjectConnected(project=PROJECT, webhook="1", url="http://127.0.0.1/webhook"),
        LabelingTasksCreated(project=PROJECT, tasks=tasks),
        *(event for number, task in enumerate(tasks) for event in _annotation(number, task)),
        *_run("run_first", FIRST, BASE, 0.61, 0.83),
        *_run("run_second", SECOND, FIRST, 0.83, 0.74),
    ]


def _annotation(number: int, task: str) -> list[Event]:
    names = {"project": PROJECT, "annotation": str(number)}
    created = AnnotationCreated(
        **names, task=task, version=_VERSION, completed_by="1", ground_truth=number % 4 == 0
    )
    if number % FLAGGED_EVERY == 0:
        return [created, AnnotationFlagged(
            **names, version=_VERSION, reasons=["annotators_disagree"],
            details=["Two annotators say positive, this one says negative."],
        )]  # fmt: skip
    return [created, AnnotationValidated(**names, version=_VERSION, agreement=0.9)]


def _run(run_id: str, model: str, replaced: str, before: float, after: float) -> list[Event]:
    judged = {
        "run_id": run_id, "project": PROJECT, "model": model, "replaced": replaced,
        "before": before, "after": after, "tasks": 18,
    }  # fmt: skip
    outcome = (
        TrainingPromoted(**judged)
        if after > before
        else TrainingRejected(**judged, reason=f"{after:.3f} is not better than {before:.3f}")
    )
    return [
        TrainingRequested(
            run_id=run_id, project=PROJECT, trigger="annotations", requested_by="training"
        ),
        TrainingPrepared(
            run_id=run_id, project=PROJECT, dataset_id=f"ds_{run_id}", train_blob="train",
            validation_blob="validation", base_model=BASE, base_source="folder", alias=ALIAS,
        ),
        TrainingStarted(run_id=run_id, trainer=WorkerId("trainer_1"), trainer_name="trainer"),
        *(
            TrainingProgressed(
                run_id=run_id, step=step, steps=10, loss=2.4 / step, validation_loss=2.6 / step
            )
            for step in range(1, 11)
        ),
        TrainingCompleted(run_id=run_id, adapter_blob=f"adapters/{run_id}", loss=0.24, seconds=60),
        *(_measured(name, share) for name, share in ((replaced, before), (model, after))),
        TrainingEvaluated(**judged),
        outcome,
    ]  # fmt: skip


def _measured(model: str, accuracy: float) -> LabelingAccuracyMeasured:
    right = round(6 * accuracy)
    confusion = [[right, 6 - right, 0], [1, right, 5 - right], [0, 6 - right, right]]
    return LabelingAccuracyMeasured(
        project=PROJECT, model_version=model, tasks=18, accuracy=accuracy,
        interval_low=accuracy - 0.1, interval_high=min(1.0, accuracy + 0.1),
        macro_f1=accuracy - 0.03, labels=LABELS, confusion=confusion, requested_by="training",
    )  # fmt: skip
