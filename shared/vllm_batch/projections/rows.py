"""What the read models hold: one struct per row, whatever store it comes from. Times in Unix
seconds."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from vllm_batch.aggregates.chunk import ChunkStatus
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import LineError, Usage
from vllm_batch.ids import FileId, JobId, KeyId, ModelKey, ProjectId, WorkerId


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as clients see it. ``seq`` is the sequence of its submission: the total order of
    lists."""

    seq: int
    job_id: JobId
    project: ProjectId
    status: JobStatus
    endpoint: str
    input_file_id: FileId
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    model: str | None = None
    errors: list[LineError] | None = None
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage | None = None
    key_id: KeyId | None = None
    retired_at: int | None = None


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """A file. ``seq`` is the sequence of its creation: the total order of lists. Lists and look-ups
    only give files that are there, whose ``deleted_at`` is None."""

    seq: int
    file_id: FileId
    project: ProjectId
    filename: str
    purpose: str
    bytes: int
    lines: int
    blob: str
    created_at: int
    expires_at: int | None = None
    deleted_at: int | None = None


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may be asked for. ``root``: what an alias means; ``parent``: an adapter's
    base."""

    name: str
    created_at: int
    root: str | None = None
    parent: str | None = None


class AnnouncedModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that some worker has announced."""

    name: str
    created_at: int


class ModelPriceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a million tokens cost from ``since`` on, until the next such row of the model."""

    since: int
    input_per_million: float | None = None
    output_per_million: float | None = None


class RegisteredModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the registry. ``prices``: the oldest first. An alias means the model that has it
    with the greatest ``aliased_seq``."""

    model_key: ModelKey
    seq: int
    name: str
    source: str
    base: str | None
    engine_args: list[str]
    aliases: list[str]
    aliased_seq: int
    prices: list[ModelPriceRow]
    training_run: str | None
    wanted_anywhere: bool
    wanted_on: list[str]
    created_at: int
    retired_at: int | None = None


class ModelOnWorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker said last of a model; whether the worker lives stands in its own row."""

    model_key: ModelKey
    worker_id: WorkerId
    worker_name: str
    status: Literal["loading", "ready", "failed", "unloaded"]
    since: int
    reason: str | None = None
    load_seconds: float | None = None


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk. ``worker_id`` is who leased it last; counts and tokens are totals so far."""

    job_id: JobId
    chunk: int
    status: ChunkStatus
    model: str
    count: int
    epoch: int = 0
    worker_id: WorkerId | None = None
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    used_at: int | None = None
    """When a result was recorded last, in Unix seconds."""
    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float = 0.0


class ApiKeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """An API key; ``revoked_at`` is set once it opens nothing any more. Times in Unix seconds."""

    seq: int
    key_id: KeyId
    project: ProjectId
    name: str
    prefix: str
    sha256: str
    created_at: int
    revoked_at: int | None = None
    scopes: list[str]
    expires_at: int | None = None
    rotated_at: int | None = None


class OnlineUsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway's online requests used for one key and model; ``used_at`` in Unix seconds."""

    meter_id: str
    number: int
    project: ProjectId
    key_id: KeyId
    model: str
    used_at: int
    requests: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was used on one day (UTC) under one key with one model. ``cost``: at the prices of that
    time, in their currency. ``kind``: batch or online. ``job_id``: None unless it was asked for by
    batch. Seconds and energy are those of batches; see `Effort`."""

    day: str
    project: ProjectId
    key_id: KeyId | None
    model: str
    kind: str
    job_id: JobId | None = None
    requests: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float = 0.0
    cost: float


class BatchUsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch has used with one model; see `UsageRow`."""

    job_id: JobId
    project: ProjectId
    key_id: KeyId | None
    model: str
    requests: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float = 0.0
    cost: float


class ProjectUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a project has now. ``queued_requests``: without a result, in unfinished batches."""

    files: int
    storage_bytes: int
    batches: int
    queued_requests: int


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's process, alive or not."""

    seq: int
    worker_id: WorkerId
    name: str
    host: str
    pid: int
    engine: str
    version: str
    status: Literal["started", "ready", "stopped", "lost"]
    models: list[str]
    in_flight_max: int
    started_at: int
    ended_at: int | None = None
    reason: str | None = None


class TrainingRunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A training run. ``before`` and ``after``: accuracy on ``tasks`` tasks with ground truth of
    ``replaced`` and of ``model``. ``reason``: why it failed or was rejected."""

    run_id: str
    project: str
    trigger: str
    retry_of: str | None
    attempt: int
    status: str
    requested_at: int
    changed_at: int
    dataset_id: str | None = None
    base_model: str | None = None
    alias: str | None = None
    trainer_name: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    seconds: float | None = None
    model: str | None = None
    replaced: str | None = None
    before: float | None = None
    after: float | None = None
    tasks: int | None = None
    reason: str | None = None


class TrainingDatasetRow(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset; ``held_out`` counts the tasks that ground truth kept away."""

    dataset_id: str
    project: str
    format: str
    train_blob: str
    validation_blob: str
    train_examples: int
    validation_examples: int
    held_out: int
    sha256: str
    created_at: int


class AnnotationRow(msgspec.Struct, frozen=True, kw_only=True):
    """An annotation. ``status``: pending (not looked at), validated, flagged or deleted; the last
    verdict's numbers stay until the next one. ``task`` is None where only its end was seen."""

    project: str
    annotation: str
    task: str | None = None
    version_us: int | None = None
    status: str = "pending"
    ground_truth: bool = False
    was_cancelled: bool = False
    completed_by: str | None = None
    lead_time_seconds: float | None = None
    agreement: float | None = None
    model_version: str | None = None
    model_agrees: bool | None = None
    reasons: list[str] = []
    details: list[str] = []
    created_at: int
    changed_at: int


class LabelingProjectRow(msgspec.Struct, frozen=True, kw_only=True):
    """A project of Label Studio. ``tasks_created`` and ``tasks_deleted`` count what was said;
    ``webhook_url``: where Label Studio delivers to, once it does."""

    project: str
    title: str = ""
    template: str | None = None
    model: str | None = None
    push_automatically: bool = False
    train_after: int = 0
    webhook_url: str | None = None
    tasks_created: int = 0
    tasks_deleted: int = 0
    deleted: bool = False
    created_at: int
    changed_at: int


class LabelingAccuracyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a model version against ground truth."""

    measurement: str
    project: str
    model_version: str
    measured_at: int
    tasks: int
    accuracy: float
    interval_low: float
    interval_high: float
    macro_f1: float
    kappa: float | None
    classes: list[dict[str, Any]]
    labels: list[str]
    confusion: list[list[int]]
