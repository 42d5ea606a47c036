"""After a run: its adapter is served, measured against what is in use, and promoted if better.

Each step is decided from the log and safe to repeat. What clients get changes at one single event,
the move of the alias; it comes after the numbers are on record and before the promotion is.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import msgspec
import structlog

from batch_labelstudio import accuracy, datasets
from batch_labelstudio.accuracy import Truth
from batch_labelstudio.bridge import Bridge
from vllm_batch import model_orders
from vllm_batch.aggregates.model import Model
from vllm_batch.aggregates.training import Run
from vllm_batch.errors import AlreadyDone, NotFound, Rejected
from vllm_batch.events import (
    LabelingAccuracyMeasured,
    TrainingEvaluated,
    TrainingFailed,
    TrainingPrepared,
    TrainingPromoted,
    TrainingRejected,
)
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.labeling.prompting import chat_of
from vllm_batch.model_orders import Registration

log = structlog.get_logger(__name__)

REQUESTED_BY = "training"
_NAME_CHARACTERS = 8


async def evaluate(
    bridge: Bridge, view: ProjectView, run: Run, prepared: TrainingPrepared
) -> TrainingEvaluated | TrainingFailed | None:
    """Return the numbers, or why there are none; None: its adapter is not served yet.

    Raises:
        ModelRefused, LabelStudioUnavailable: it cannot be measured now.
    """
    model = await _served(bridge, run, prepared)
    if model is None:
        if is_late(bridge, run):
            return _failed(run, "no worker served its adapter in time", retryable=False)
        return None
    current = bridge.models.registry.resolve(prepared.alias)
    if current is None or current == model.name:
        return _failed(run, f"{prepared.alias} means {current} now", retryable=False)
    truth = await accuracy.truth_of(bridge, view)
    if await _has_learned(bridge, view, prepared, truth):
        # Its numbers would be too good. A new run is trained without what became ground truth.
        return _failed(run, "what it was trained on is ground truth by now", retryable=True)
    known, wanted = len(truth.values), bridge.settings.training_ground_truth_min
    if known < wanted:
        reason = f"only {known} tasks have ground truth by now, {wanted} are needed"
        return _failed(run, reason, retryable=False)
    before, after = await _both(bridge, view, (current, model.name), truth)
    better = after.accuracy > before.accuracy
    for other in _sharing(bridge, view.project.project, prepared.alias) if better else []:
        with suppress(NotFound, Rejected):  # it has nothing to measure by
            others = await accuracy.truth_of(bridge, other)
            await _both(bridge, other, (current, model.name), others)
    return TrainingEvaluated(
        run_id=run.run_id,
        project=prepared.project,
        model=model.name,
        replaced=current,
        before=before.accuracy,
        after=after.accuracy,
        tasks=after.tasks,
    )


async def conclude(
    bridge: Bridge, measured: TrainingEvaluated, alias: str
) -> TrainingPromoted | TrainingRejected:
    """Move the alias if the new version is better, and return what that was.

    Raises:
        BatchError: it could not be done now.
    """
    now = bridge.models.registry.resolve(alias)
    margin = bridge.settings.training_promote_margin
    if now == measured.model:  # moved by us, before a crash
        return _promoted(measured)
    if measured.after <= measured.before + margin:
        reason = f"{measured.after:.3f} is not better than {measured.before:.3f} by over {margin:g}"
    elif now != measured.replaced:
        reason = f"{alias} means {now} now, which it was not measured against"
    elif worse := _worse_elsewhere(bridge, measured, alias):
        reason = worse
    else:
        await model_orders.alias(
            bridge.store, measured.model, add=[alias], requested_by=REQUESTED_BY, force=True
        )
        return _promoted(measured)
    await discard(bridge, measured.model)
    return TrainingRejected(**_numbers(measured), reason=reason)


def given_up(run: Run, reason: str) -> TrainingFailed | TrainingRejected:
    """Return the end of a run that nobody waits for any more, wherever it is."""
    if run.evaluated is not None:
        return TrainingRejected(**_numbers(run.evaluated), reason=reason)
    return _failed(run, reason, retryable=False)


async def discard(bridge: Bridge, name: str) -> None:
    """Take an adapter out of service that will not be used; without effect if it is not in it."""
    try:
        await model_orders.unload(bridge.store, name, requested_by=REQUESTED_BY)
    except (AlreadyDone, NotFound) as error:
        log.debug("nothing to unload", model=name, why=str(error))


def is_late(bridge: Bridge, run: Run) -> bool:
    """Tell whether a trained adapter has had its time to be served and measured."""
    limit = timedelta(seconds=bridge.settings.training_load_seconds)
    return bridge.clock.now() - run.at > limit


def adapter_name(run: Run, alias: str) -> str:
    """Return the name of the version that a run makes."""
    return f"{alias}-{run.run_id[-_NAME_CHARACTERS:]}"


async def _served(bridge: Bridge, run: Run, prepared: TrainingPrepared) -> Model | None:
    """Return the adapter as a model if a worker serves it; else see to it that one will."""
    assert run.completed is not None  # noqa: S101 - what the caller has seen
    name = adapter_name(run, prepared.alias)
    model = bridge.models.registry.find(name)
    if model is None:
        wanted = Registration(
            name=name,
            source=f"blob:{run.completed.adapter_blob}",
            base=prepared.base_model,
            training_run=run.run_id,
        )
        model = await model_orders.register(bridge.store, wanted, requested_by=REQUESTED_BY)
    if not model.wanted:
        try:
            await model_orders.load(bridge.store, name, requested_by=REQUESTED_BY)
        except AlreadyDone:
            return None  # the registry here is a moment behind
    return model if model.ready_on else None


async def _both(
    bridge: Bridge, view: ProjectView, models: tuple[str, str], truth: Truth
) -> list[LabelingAccuracyMeasured]:
    """Measure two versions by the same truth, and record it."""
    measured = [
        await accuracy.measure(bridge, view, model, truth, requested_by=REQUESTED_BY)
        for model in models
    ]
    for one in measured:
        await accuracy.record(bridge, one)
    return measured


def _sharing(bridge: Bridge, project: str, alias: str) -> list[ProjectView]:
    """Return the other projects that ask the same alias: they get the new version as well."""
    return [
        view
        for view in bridge.feed.projects.all()
        if view.project.configured
        and view.project.configured.model == alias
        and view.project.project != project
    ]


def _worse_elsewhere(bridge: Bridge, measured: TrainingEvaluated, alias: str) -> str | None:
    """Return which project would lose by the promotion, and what; None: none that is measured."""
    for view in _sharing(bridge, measured.project, alias):
        last = {one.model_version: one.accuracy for one in view.project.measured}
        before, after = last.get(measured.replaced), last.get(measured.model)
        if before is not None and after is not None and after < before:
            return (
                f"project {view.project.project}, which asks {alias} too, "
                f"would fall from {before:.3f} to {after:.3f}"
            )
    return None


async def _has_learned(
    bridge: Bridge, view: ProjectView, prepared: TrainingPrepared, truth: Truth
) -> bool:
    """Tell whether the run has learned a task whose answer is ground truth by now."""
    learned = datasets.asked_in(await bridge.blobs.get(prepared.train_blob))
    prompt = view.project.configured.prompt if view.project.configured else ""
    return any(
        datasets.asked(chat_of(truth.data[task], truth.config, prompt)) in learned
        for task in truth.values
    )


def _failed(run: Run, reason: str, *, retryable: bool) -> TrainingFailed:
    return TrainingFailed(run_id=run.run_id, reason=reason, retryable=retryable)


def _promoted(measured: TrainingEvaluated) -> TrainingPromoted:
    return TrainingPromoted(**_numbers(measured))


def _numbers(measured: TrainingEvaluated) -> dict[str, Any]:
    return msgspec.structs.asdict(measured)
