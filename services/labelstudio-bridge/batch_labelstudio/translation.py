"""From Label Studio's words to ours. Pure: JSON in, events out, which may not be news at all."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from batch_labelstudio.recorder import Said
from vllm_batch import ids
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    LabelingProjectDeleted,
    LabelingProjectUpdated,
    LabelingTasksCreated,
    LabelingTasksDeleted,
    LabelingWebhookReceived,
    TrainingRequested,
)
from vllm_batch.events.annotation import Origin
from vllm_batch.labeling.deliveries import Body, things


class _Thing(msgspec.Struct, frozen=True):
    id: int


class _Annotation(msgspec.Struct, frozen=True):
    """An annotation as webhooks and lists have it; ids are numbers and so safe in subjects."""

    id: int
    task: int
    updated_at: datetime
    result: list[dict[str, Any]] | None = None
    completed_by: int | _Thing | None = None
    was_cancelled: bool = False
    ground_truth: bool = False
    lead_time: float | None = None
    parent_prediction: int | None = None


class _Project(msgspec.Struct, frozen=True):
    id: int
    title: str | None = None
    label_config: str | None = None
    updated_at: datetime | None = None


def said_by(delivery: LabelingWebhookReceived, body: Body, project: str | None) -> list[Said]:
    """Return what a delivery says of ``project``, which not every delivery names.

    Raises:
        msgspec.ValidationError: it is not what Label Studio sends for that action.
    """
    if delivery.action.startswith("LABEL_LINK_"):
        return []  # which labels are offered is said by the project's label config
    if project is None:
        raise msgspec.ValidationError("it names no project")
    said: list[Said]
    match delivery.action:
        case "ANNOTATION_CREATED" | "ANNOTATIONS_CREATED" | "ANNOTATION_UPDATED":
            said = [annotation(project, one, "webhook") for one in things(body)]
        case "ANNOTATIONS_DELETED":
            said = [AnnotationDeleted(project=project, annotation=one) for one in _ids(body)]
        case "TASKS_CREATED":
            said = [LabelingTasksCreated(project=project, tasks=_ids(body))]
        case "TASKS_DELETED":
            said = [LabelingTasksDeleted(project=project, tasks=_ids(body))]
        case "PROJECT_DELETED":
            said = [LabelingProjectDeleted(project=project)]
        case "PROJECT_CREATED" | "PROJECT_UPDATED":
            said = [project_state(body["project"])]
        case "START_TRAINING":
            said = [_training(delivery, project)]
        case action:
            raise msgspec.ValidationError(f"nobody knows what {action} says")
    return said


def annotation(project: str, found: Any, origin: Origin) -> AnnotationCreated:
    """Return an annotation as Label Studio has it now.

    Raises:
        msgspec.ValidationError: it is none.
    """
    one = msgspec.convert(found, _Annotation)
    by = one.completed_by.id if isinstance(one.completed_by, _Thing) else one.completed_by
    return AnnotationCreated(
        project=project,
        annotation=str(one.id),
        task=str(one.task),
        version=one.updated_at,
        result=one.result or [],
        completed_by=_text(by),
        was_cancelled=one.was_cancelled,
        ground_truth=one.ground_truth,
        lead_time_seconds=one.lead_time,
        parent_prediction=_text(one.parent_prediction),
        origin=origin,
    )


def project_state(found: Any) -> LabelingProjectUpdated:
    """Return a project as Label Studio has it now.

    Raises:
        msgspec.ValidationError: it is none.
    """
    one = msgspec.convert(found, _Project)
    return LabelingProjectUpdated(
        project=str(one.id),
        title=one.title or "",
        label_config=one.label_config or "",
        version=one.updated_at,
    )


def _ids(body: Body) -> list[str]:
    return [str(one.id) for one in msgspec.convert(things(body), list[_Thing])]


def _training(delivery: LabelingWebhookReceived, project: str) -> TrainingRequested:
    return TrainingRequested(
        run_id=ids.derived("run_", delivery.delivery_id),
        project=project,
        trigger="button",
        requested_by="label-studio",
    )


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)
