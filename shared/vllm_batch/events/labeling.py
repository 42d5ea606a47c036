"""Events around Label Studio: deliveries as they came, projects, tasks, measured accuracy."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

from vllm_batch.events.base import Event

Template = Literal["classification", "ner", "pairwise", "rating", "text"]


class LabelingWebhookReceived(Event, frozen=True, kw_only=True):
    """Label Studio delivered something; it is worked on after this was recorded.

    ``delivery_id`` derives from what was delivered (action, ids, ``updated_at``), so a duplicate is
    the same aggregate. ``body`` is the payload without tokens and passwords, or in ``body_blob``
    where it is long.
    """

    TYPE: ClassVar[str] = "labeling.webhook_received"
    AGGREGATE: ClassVar[tuple[str, ...]] = ("delivery_id",)

    delivery_id: str
    action: str
    project: str | None = None
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    body_blob: str | None = None


class _ProjectEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("project",)

    project: str


class LabelingProjectConfigured(_ProjectEvent, frozen=True, kw_only=True):
    """What we do for a project; a later one replaces an earlier one.

    ``model``: name or alias whose predictions are shown. ``prompt``: what it is asked, with the
    task's fields in braces. ``push_on``: results of batches with this ``metadata.labeling_project``
    become tasks by themselves. ``train_after``: so many newly validated annotations start a
    training; 0: never.
    """

    TYPE: ClassVar[str] = "labeling.project_configured"

    title: str = ""
    template: Template
    model: str
    prompt: str = ""
    label_config: str = ""
    push_automatically: bool = False
    train_after: int = 0
    train_every_seconds: int = 0
    write_back: bool = False
    judge_model: str | None = None
    requested_by: str


class LabelingProjectUpdated(_ProjectEvent, frozen=True, kw_only=True):
    """The project looks like this in Label Studio now."""

    TYPE: ClassVar[str] = "labeling.project_updated"

    title: str
    label_config: str
    version: datetime | None = None


class LabelingProjectDeleted(_ProjectEvent, frozen=True, kw_only=True):
    """The project is gone from Label Studio, with its tasks and annotations."""

    TYPE: ClassVar[str] = "labeling.project_deleted"


class LabelingTasksCreated(_ProjectEvent, frozen=True, kw_only=True):
    """Tasks are there, whoever made them."""

    TYPE: ClassVar[str] = "labeling.tasks_created"

    tasks: list[str]


class LabelingTasksDeleted(_ProjectEvent, frozen=True, kw_only=True):
    """Tasks are gone, and their annotations with them."""

    TYPE: ClassVar[str] = "labeling.tasks_deleted"

    tasks: list[str]


class LabelingProjectConnected(_ProjectEvent, frozen=True, kw_only=True):
    """The bridge has made Label Studio deliver the project's events, as webhook ``webhook``."""

    TYPE: ClassVar[str] = "labeling.project_connected"

    webhook: str
    url: str


class _PushEvent(Event, frozen=True, kw_only=True):
    """``push_id`` derives from project and source where a rule asks: it asks once."""

    AGGREGATE: ClassVar[tuple[str, ...]] = ("project", "push_id")

    project: str
    push_id: str


class LabelingPushRequested(_PushEvent, frozen=True, kw_only=True):
    """The results in ``source``, a batch or a file, are to become tasks."""

    TYPE: ClassVar[str] = "labeling.push_requested"

    source: str
    requested_by: str


class LabelingTasksPushed(_PushEvent, frozen=True, kw_only=True):
    """Results are tasks with predictions: ``created`` new ones, ``known`` were there.

    ``skipped``: lines that could not be mapped; ``skipped_why`` has a sentence for the first ones.
    """

    TYPE: ClassVar[str] = "labeling.tasks_pushed"

    source: str
    created: int
    known: int = 0
    predictions: int = 0
    skipped: int = 0
    skipped_why: list[str] = msgspec.field(default_factory=list)


class LabelingPushFailed(_PushEvent, frozen=True, kw_only=True):
    """Nothing can be pushed from there; ``reason`` says what to do."""

    TYPE: ClassVar[str] = "labeling.push_failed"

    source: str
    reason: str


class ClassScore(msgspec.Struct, frozen=True):
    """One class, or one label of a span: all in [0, 1]; ``support`` counts true cases."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class LabelingAccuracyMeasured(_ProjectEvent, frozen=True, kw_only=True):
    """How well a model's answers meet the ground truth.

    ``confusion`` is [n_classes][n_classes], rows true, columns predicted, in the order of
    ``labels``. The interval is that of ``accuracy`` at 95 %.
    """

    TYPE: ClassVar[str] = "labeling.accuracy_measured"

    model_version: str
    tasks: int
    accuracy: float
    interval_low: float
    interval_high: float
    macro_f1: float
    kappa: float | None = None
    classes: list[ClassScore] = msgspec.field(default_factory=list)
    labels: list[str] = msgspec.field(default_factory=list)
    confusion: list[list[int]] = msgspec.field(default_factory=list)
    requested_by: str


LabelingEvent = (
    LabelingWebhookReceived
    | LabelingProjectConfigured
    | LabelingProjectUpdated
    | LabelingProjectDeleted
    | LabelingTasksCreated
    | LabelingTasksDeleted
    | LabelingProjectConnected
    | LabelingPushRequested
    | LabelingTasksPushed
    | LabelingPushFailed
    | LabelingAccuracyMeasured
)
