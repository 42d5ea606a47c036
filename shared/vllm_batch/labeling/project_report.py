"""Labeling projects and their annotations, as API and command line show them. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from vllm_batch.aggregates.annotation import Annotation
from vllm_batch.events import AnnotationFlagged, AnnotationValidated, LabelingAccuracyMeasured
from vllm_batch.labeling.projects import ProjectView

VerdictName = Literal["validated", "flagged"]


class LabelingProject(msgspec.Struct, frozen=True, kw_only=True):
    """A project of Label Studio: what is done for it, and how far it is. ``accuracy`` is that of
    the last measurement, in [0, 1]."""

    id: str
    title: str
    template: str | None
    model: str | None
    connected: bool
    tasks: int
    annotations: int
    validated: int
    flagged: int
    ground_truth: int
    accuracy: float | None


class LabelingAnnotation(msgspec.Struct, frozen=True, kw_only=True):
    """An annotation and what validation says of its present version; ``verdict`` is None until it
    has said anything. ``result`` is None where it is too long to be shown."""

    id: str
    task: str
    version: datetime
    completed_by: str | None
    was_cancelled: bool
    ground_truth: bool
    result: list[dict[str, Any]] | None
    verdict: VerdictName | None
    reasons: list[str]
    details: list[str]
    agreement: float | None
    model_version: str | None
    model_agrees: bool | None


class Measurement(LabelingAccuracyMeasured, frozen=True, kw_only=True):
    """A measurement, and when it was recorded (UTC)."""

    measured_at: datetime


class LabelingAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Every measurement of a project, the newest last."""

    project: str
    measured: list[Measurement]


def history_of(view: ProjectView, model: str = "") -> LabelingAccuracy:
    """Return the measurements of a project, of one model version or of all."""
    project = view.project
    measured = [
        Measurement(**msgspec.structs.asdict(one), measured_at=at)
        for one, at in zip(project.measured, project.measured_at, strict=True)
        if model in {"", one.model_version}
    ]
    return LabelingAccuracy(project=project.project, measured=measured)


def of_project(view: ProjectView) -> LabelingProject:
    """Return what there is to say of a project."""
    project, configured = view.project, view.project.configured
    return LabelingProject(
        id=project.project,
        title=project.title,
        template=configured.template if configured else None,
        model=configured.model if configured else None,
        connected=project.connected is not None,
        tasks=len(project.tasks),
        annotations=sum(1 for _ in view.present()),
        validated=len(view.validated()),
        flagged=len(view.flagged()),
        ground_truth=len(view.ground_truth()),
        accuracy=project.measured[-1].accuracy if project.measured else None,
    )


def of_annotations(annotations: dict[str, Annotation]) -> list[LabelingAnnotation]:
    """Return what there is to say of annotations, in the order of their ids."""
    return [
        _of_annotation(annotation_id, annotations[annotation_id])
        for annotation_id in sorted(annotations, key=lambda one: (len(one), one))
        if annotations[annotation_id].written is not None
    ]


def _of_annotation(annotation_id: str, annotation: Annotation) -> LabelingAnnotation:
    written, verdict = annotation.written, annotation.verdict
    assert written is not None  # noqa: S101 - see `of_annotations`
    flagged = verdict if isinstance(verdict, AnnotationFlagged) else None
    name: VerdictName | None = "flagged" if flagged else None
    return LabelingAnnotation(
        id=annotation_id,
        task=written.task,
        version=written.version,
        completed_by=written.completed_by,
        was_cancelled=written.was_cancelled,
        ground_truth=written.ground_truth,
        result=written.result if written.result_blob is None else None,
        verdict="validated" if isinstance(verdict, AnnotationValidated) else name,
        reasons=list(flagged.reasons) if flagged else [],
        details=flagged.details if flagged else [],
        agreement=verdict.agreement if verdict else None,
        model_version=verdict.model_version if verdict else None,
        model_agrees=verdict.model_agrees if verdict else None,
    )
