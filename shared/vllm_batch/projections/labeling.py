"""Read models ``annotation``, ``labeling_project`` and ``labeling_accuracy``.

``version_us`` is an annotation's ``updated_at`` in microseconds: a verdict counts for the version
that it looked at, and a newer version is pending again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

import msgspec

from vllm_batch import ids
from vllm_batch.aggregates.labeling import ProjectEvent
from vllm_batch.errors import ProjectionError
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    AnnotationFlagged,
    AnnotationUpdated,
    AnnotationValidated,
    Event,
    LabelingAccuracyMeasured,
    LabelingProjectConfigured,
    LabelingProjectConnected,
    LabelingProjectDeleted,
    LabelingProjectUpdated,
    LabelingTasksCreated,
    LabelingTasksDeleted,
    Recorded,
)
from vllm_batch.events.annotation import AnnotationEvent
from vllm_batch.projections.rows import AnnotationRow, LabelingAccuracyRow, LabelingProjectRow
from vllm_batch.projections.table import Key, Table


def evolve_annotation(row: AnnotationRow | None, recorded: Recorded, key: Key) -> AnnotationRow:
    """Return the annotation's row after ``recorded``.

    Raises:
        ProjectionError: the event is none of an annotation's.
    """
    event, now = recorded.event, int(recorded.time.timestamp())
    row = row or AnnotationRow(project=key[0], annotation=key[1], created_at=now, changed_at=now)
    changes: dict[str, Any]
    match event:
        case AnnotationCreated() | AnnotationUpdated():
            changes = {
                "task": event.task,
                "version_us": _microseconds(event.version),
                "status": "pending",
                "ground_truth": event.ground_truth,
                "was_cancelled": event.was_cancelled,
                "completed_by": event.completed_by,
                "lead_time_seconds": event.lead_time_seconds,
                "reasons": [],
                "details": [],
            }
        case AnnotationDeleted():
            changes = {"status": "deleted"}
        case AnnotationValidated() | AnnotationFlagged():
            changes = _judged(row, event)
        case _:
            raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is none of an annotation's")
    return msgspec.structs.replace(row, changed_at=now, **changes)


def _judged(row: AnnotationRow, event: AnnotationValidated | AnnotationFlagged) -> dict[str, Any]:
    if row.status == "deleted" or row.version_us != _microseconds(event.version):
        return {}
    flagged = isinstance(event, AnnotationFlagged)
    return {
        "status": "flagged" if flagged else "validated",
        "reasons": event.reasons if isinstance(event, AnnotationFlagged) else [],
        "details": event.details if isinstance(event, AnnotationFlagged) else [],
        "agreement": event.agreement,
        "model_version": event.model_version,
        "model_agrees": event.model_agrees,
    }


def evolve_project(
    row: LabelingProjectRow | None, recorded: Recorded, key: Key
) -> LabelingProjectRow:
    """Return the project's row after ``recorded``.

    Raises:
        ProjectionError: the event is none of a project's.
    """
    event, now = recorded.event, int(recorded.time.timestamp())
    row = row or LabelingProjectRow(project=key[0], created_at=now, changed_at=now)
    changes: dict[str, Any]
    match event:
        case LabelingProjectConfigured():
            changes = {
                "template": event.template,
                "model": event.model,
                "push_automatically": event.push_automatically,
                "train_after": event.train_after,
                "title": row.title or event.title,
            }
        case LabelingProjectConnected(url=url):
            changes = {"webhook_url": url}
        case LabelingProjectUpdated(title=title):
            changes = {"title": title, "deleted": False}
        case LabelingProjectDeleted():
            changes = {"deleted": True, "webhook_url": None}
        case LabelingTasksCreated(tasks=tasks):
            changes = {"tasks_created": row.tasks_created + len(tasks)}
        case LabelingTasksDeleted(tasks=tasks):
            changes = {"tasks_deleted": row.tasks_deleted + len(tasks)}
        case LabelingAccuracyMeasured():
            changes = {}
        case _:
            raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is none of a project's")
    return msgspec.structs.replace(row, changed_at=now, **changes)


def evolve_accuracy(
    _: LabelingAccuracyRow | None, recorded: Recorded, key: Key
) -> LabelingAccuracyRow:
    """Return the measurement's row; the same numbers measured again are the same row, newer.

    Raises:
        ProjectionError: the event is no measurement.
    """
    event = recorded.event
    if not isinstance(event, LabelingAccuracyMeasured):
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) measures no accuracy")
    return LabelingAccuracyRow(
        measurement=key[0],
        project=event.project,
        model_version=event.model_version,
        measured_at=int(recorded.time.timestamp()),
        tasks=event.tasks,
        accuracy=event.accuracy,
        interval_low=event.interval_low,
        interval_high=event.interval_high,
        macro_f1=event.macro_f1,
        kappa=event.kappa,
        classes=msgspec.to_builtins(event.classes),
        labels=event.labels,
        confusion=event.confusion,
    )


def _measurement(event: Event) -> list[Key]:
    return [(ids.derived("acc_", msgspec.json.encode(event).decode()),)]


def _aggregate(event: Event) -> list[Key]:
    return [event.aggregate_id()]


def _microseconds(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000)


ANNOTATION_TABLE = Table(
    name="annotation",
    row=AnnotationRow,
    key=("project", "annotation"),
    events=get_args(AnnotationEvent),
    first=None,
    keys=_aggregate,
    evolve=evolve_annotation,
)

PROJECT_TABLE = Table(
    name="labeling_project",
    row=LabelingProjectRow,
    key=("project",),
    events=get_args(ProjectEvent),
    first=None,
    keys=_aggregate,
    evolve=evolve_project,
)

ACCURACY_TABLE = Table(
    name="labeling_accuracy",
    row=LabelingAccuracyRow,
    key=("measurement",),
    events=(LabelingAccuracyMeasured,),
    first=LabelingAccuracyMeasured,
    keys=_measurement,
    evolve=evolve_accuracy,
)
