"""Events of a training run: from the wish for one to a promoted model, and of its dataset."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from vllm_batch.events.base import Event
from vllm_batch.ids import WorkerId

Trigger = Literal["annotations", "schedule", "button", "command", "retry"]
DatasetFormat = Literal["sft", "preference", "classification"]


class TrainingDatasetCreated(Event, frozen=True, kw_only=True):
    """A dataset was exported. ``dataset_id`` derives from its content: the same annotations make
    the same dataset. Ground truth is in neither part."""

    TYPE: ClassVar[str] = "training.dataset_created"
    AGGREGATE: ClassVar[tuple[str, ...]] = ("dataset_id",)

    dataset_id: str
    project: str
    format: DatasetFormat
    train_blob: str
    validation_blob: str
    train_examples: int
    validation_examples: int
    held_out: int
    sha256: str


class _TrainingEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("run_id",)

    run_id: str


class TrainingRequested(_TrainingEvent, frozen=True, kw_only=True):
    """A project's model is to be trained on its validated annotations. ``retry_of``: the run that
    failed; ``attempt`` counts from 1."""

    TYPE: ClassVar[str] = "training.requested"

    project: str
    trigger: Trigger
    requested_by: str
    retry_of: str | None = None
    attempt: int = 1


class TrainingPrepared(_TrainingEvent, frozen=True, kw_only=True):
    """Everything a trainer needs is there. ``base_model`` is the name of what an adapter is made
    of, found at ``base_source``; ``alias`` is what the project asks, and what a promotion moves."""

    TYPE: ClassVar[str] = "training.prepared"

    project: str
    dataset_id: str
    train_blob: str
    validation_blob: str
    base_model: str
    base_source: str
    alias: str


class TrainingStarted(_TrainingEvent, frozen=True, kw_only=True):
    """A trainer took the run. ``trainer_name`` outlives the process ``trainer``."""

    TYPE: ClassVar[str] = "training.started"

    trainer: WorkerId
    trainer_name: str
    parameters: dict[str, float | int | str] = msgspec.field(default_factory=dict)


class TrainingProgressed(_TrainingEvent, frozen=True, kw_only=True):
    """The trainer is at work; ``step`` of ``steps`` are done. Said again while nothing is new."""

    TYPE: ClassVar[str] = "training.progressed"

    step: int
    steps: int
    epoch: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None


class TrainingCompleted(_TrainingEvent, frozen=True, kw_only=True):
    """The adapter is stored under ``adapter_blob``, a prefix of the blob store."""

    TYPE: ClassVar[str] = "training.completed"

    adapter_blob: str
    loss: float | None
    seconds: float


class TrainingFailed(_TrainingEvent, frozen=True, kw_only=True):
    """It ended without an adapter; nothing was promoted."""

    TYPE: ClassVar[str] = "training.failed"

    reason: str
    retryable: bool = False


class _TrainingJudged(_TrainingEvent, frozen=True, kw_only=True):
    """Both were asked the same tasks with ground truth; ``before`` is the accuracy of the version
    that was in use, ``after`` that of the new one."""

    project: str
    model: str
    replaced: str
    before: float
    after: float
    tasks: int


class TrainingEvaluated(_TrainingJudged, frozen=True, kw_only=True):
    """The adapter was measured; what follows from it comes next."""

    TYPE: ClassVar[str] = "training.evaluated"


class TrainingPromoted(_TrainingJudged, frozen=True, kw_only=True):
    """``model`` answers from now on."""

    TYPE: ClassVar[str] = "training.promoted"


class TrainingRejected(_TrainingJudged, frozen=True, kw_only=True):
    """``model`` is not better; ``replaced`` stays in use."""

    TYPE: ClassVar[str] = "training.rejected"

    reason: str


class TrainingRolledBack(_TrainingEvent, frozen=True, kw_only=True):
    """``model`` was taken out of use again; ``restored`` answers from now on."""

    TYPE: ClassVar[str] = "training.rolled_back"

    project: str
    model: str
    restored: str
    requested_by: str


TrainingEvent = (
    TrainingDatasetCreated
    | TrainingRequested
    | TrainingPrepared
    | TrainingStarted
    | TrainingProgressed
    | TrainingCompleted
    | TrainingFailed
    | TrainingEvaluated
    | TrainingPromoted
    | TrainingRejected
    | TrainingRolledBack
)
