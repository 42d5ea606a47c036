"""Events of an annotation: what a person said about a task in Label Studio, and what we make of it.

``project``, ``annotation`` and ``task`` are Label Studio's numbers, as text.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

from vllm_batch.events.base import Event

Origin = Literal["webhook", "reconciler"]
FlagReason = Literal[
    "schema", "ground_truth_mismatch", "annotators_disagree", "model_disagrees", "judge", "skipped"
]


class _AnnotationEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("project", "annotation")

    project: str
    annotation: str


class _AnnotationWritten(_AnnotationEvent, frozen=True, kw_only=True):
    """``result`` is Label Studio's list of regions; ``result_blob`` has it instead where it is
    long. ``version`` is the annotation's ``updated_at``: an older one never follows a newer."""

    task: str
    version: datetime
    result: list[dict[str, Any]] = msgspec.field(default_factory=list)
    result_blob: str | None = None
    completed_by: str | None = None
    was_cancelled: bool = False
    ground_truth: bool = False
    lead_time_seconds: float | None = None
    parent_prediction: str | None = None
    origin: Origin = "webhook"


class AnnotationCreated(_AnnotationWritten, frozen=True, kw_only=True):
    """An annotator handed in an annotation, or skipped the task (``was_cancelled``)."""

    TYPE: ClassVar[str] = "annotation.created"


class AnnotationUpdated(_AnnotationWritten, frozen=True, kw_only=True):
    """An annotation was changed, or marked as ground truth, or unmarked."""

    TYPE: ClassVar[str] = "annotation.updated"


class AnnotationDeleted(_AnnotationEvent, frozen=True, kw_only=True):
    """It is gone from Label Studio, alone or with its task or project."""

    TYPE: ClassVar[str] = "annotation.deleted"

    origin: Origin = "webhook"


class _AnnotationJudged(_AnnotationEvent, frozen=True, kw_only=True):
    """``version``: which state of the annotation was looked at. Agreement is in [-1, 1], None where
    there is nobody to agree with."""

    version: datetime
    agreement: float | None = None
    model_version: str | None = None
    model_agrees: bool | None = None


class AnnotationValidated(_AnnotationJudged, frozen=True, kw_only=True):
    """Nothing speaks against it: it may be trained on."""

    TYPE: ClassVar[str] = "annotation.validated"


class AnnotationFlagged(_AnnotationJudged, frozen=True, kw_only=True):
    """A person should look at it; ``details`` has a sentence per reason, in the same order."""

    TYPE: ClassVar[str] = "annotation.flagged"

    reasons: list[FlagReason]
    details: list[str] = msgspec.field(default_factory=list)


AnnotationEvent = (
    AnnotationCreated
    | AnnotationUpdated
    | AnnotationDeleted
    | AnnotationValidated
    | AnnotationFlagged
)
