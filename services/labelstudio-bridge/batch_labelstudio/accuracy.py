"""How well a model answers the tasks of a project whose answer is known.

Asks the model as the ML backend does: the project's prompt, the form of its label config, the
gateway. Truth is an annotation that is marked as ground truth and fits the label config, which may
have changed since; its task is read from Label Studio.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from batch_labelstudio import metrics, results
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.predicting import Question
from batch_labelstudio.project_config import config_of
from vllm_batch.aggregates import labeling as labeling_rules
from vllm_batch.aggregates.annotation import Written
from vllm_batch.errors import ModelRefused, NotFound, Rejected
from vllm_batch.event_store.protocol import append_decided
from vllm_batch.events import LabelingAccuracyMeasured
from vllm_batch.labeling.answers import Value, check, from_result
from vllm_batch.labeling.label_config import Control, LabelConfig
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is measured by: the question, and by task its data and what is true."""

    config: LabelConfig
    control: Control
    data: dict[str, dict[str, Any]]
    values: dict[str, Value | None]


async def truth_of(bridge: Bridge, view: ProjectView) -> Truth:
    """Return a project's ground truth as it is now.

    Raises:
        NotFound: there is none that fits the label config and whose task is left.
        Rejected: its label config asks nothing that a model could answer.
        BridgeUnreachable: the label config has not been read yet.
        LabelStudioUnavailable: the tasks cannot be read now.
    """
    project = view.project.project
    config = config_of(view)
    control = config.primary
    if control is None or bridge.label_studio is None:
        raise Rejected(f"project {project} asks nothing that a model answers, or has no server")
    written = view.truths()
    data = await bridge.label_studio.data_of(written)
    values = await _fitting(bridge, config, control, written, data)
    if not values:
        raise NotFound(
            f"project {project} has no ground truth that fits its label config; mark some: "
            f"`vllm-batch label ground-truth mark --project {project} ANNOTATION`"
        )
    return Truth(config, control, data, values)


async def measure(
    bridge: Bridge, view: ProjectView, model: str, truth: Truth, *, requested_by: str
) -> LabelingAccuracyMeasured:
    """Return how well ``model``, a name, answers; `record` puts it on record.

    Raises:
        ModelRefused: a task was not answered: the numbers would be of other tasks.
    """
    prompt = view.project.configured.prompt if view.project.configured else ""
    predictions = await bridge.predictor.predict(
        [truth.data[task] for task in truth.values],
        Question(truth.config, model, prompt),
        seconds=bridge.settings.label_measure_seconds,
    )
    if failed := [one.failed for one in predictions if one.failed]:
        raise ModelRefused(
            f"{model} did not answer {len(failed)} of {len(predictions)}: {failed[0]}"
        )
    answers = [prediction.answer.get(truth.control.name) for prediction in predictions]
    pairs = list(zip(truth.values.values(), answers, strict=True))
    scores = await asyncio.to_thread(metrics.score, truth.control, pairs)
    return LabelingAccuracyMeasured(
        project=view.project.project,
        model_version=model,
        requested_by=requested_by,
        **scores._asdict(),
    )


async def record(bridge: Bridge, measured: LabelingAccuracyMeasured) -> None:
    """Append what was measured to the project's history; returns when the bridge knows it.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    recorded, _ = await append_decided(
        bridge.store, subjects.of_aggregate(measured), labeling_rules.evolve, lambda _: measured
    )
    await bridge.feed.reached(recorded.seq)


async def _fitting(
    bridge: Bridge,
    config: LabelConfig,
    control: Control,
    written: dict[str, Written],
    data: dict[str, dict[str, Any]],
) -> dict[str, Value | None]:
    """Return what is true by task, where the task is there and the truth fits."""
    truth: dict[str, Value | None] = {}
    for task, one in written.items():
        if task not in data:
            continue
        result = await results.of(one, bridge.blobs)
        if problems := check(config, result, data[task]):
            log.warning("ground truth does not fit", task=task, why=problems[0])
            continue
        truth[task] = from_result(config, result).get(control.name)
    return truth
