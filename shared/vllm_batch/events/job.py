"""Events of a job (clients call it a batch)."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from vllm_batch.events.base import Event, Usage
from vllm_batch.ids import FileId, JobId, KeyId, ProjectId

Outcome = Literal["completed", "expired", "cancelled"]
StuckReason = Literal[
    "no_worker",
    "workers_lost",
    "workers_crash_looping",
    "no_progress",
    "not_leased",
    "not_planned",
    "not_finalized",
]


class _JobEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("job_id",)

    job_id: JobId


class LineError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a batch file is invalid; ``line`` counts physical lines from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class JobSubmitted(_JobEvent, frozen=True, kw_only=True):
    """A batch was accepted. ``expires_at`` is in Unix seconds."""

    TYPE: ClassVar[str] = "job.submitted"

    project: ProjectId
    key_id: KeyId | None = None
    input_file_id: FileId
    endpoint: str
    completion_window: str
    expires_at: int
    metadata: dict[str, str] | None = None
    output_expires_after_seconds: int | None = None
    priority: int = 0
    fingerprint: str | None = None
    """Hash of the request that carried an Idempotency-Key, to tell a retry from a misuse."""


class JobStarted(_JobEvent, frozen=True, kw_only=True):
    """The file is valid and planned: ``total`` requests in ``chunks`` chunks. ``model`` is the
    first request's; where a batch mixes models, each chunk says its own."""

    TYPE: ClassVar[str] = "job.started"

    total: int
    chunks: int
    model: str


class JobFailed(_JobEvent, frozen=True, kw_only=True):
    """The file is invalid; nothing was run. ``errors`` holds the first ones of ``error_count``."""

    TYPE: ClassVar[str] = "job.failed"

    errors: list[LineError]
    error_count: int


class JobCancelRequested(_JobEvent, frozen=True, kw_only=True):
    """The user asked to cancel; chunks are closed next."""

    TYPE: ClassVar[str] = "job.cancel_requested"


class JobWindowClosed(_JobEvent, frozen=True, kw_only=True):
    """The completion window passed; chunks are closed next."""

    TYPE: ClassVar[str] = "job.window_closed"


class JobFinalizing(_JobEvent, frozen=True, kw_only=True):
    """Every chunk is terminal; the files are being written."""

    TYPE: ClassVar[str] = "job.finalizing"

    outcome: Outcome


class JobStuck(_JobEvent, frozen=True, kw_only=True):
    """Nothing was recorded for ``idle_seconds``; ``reason`` and ``detail`` say why.

    ``chunks``: leased without progress (``no_progress``). Their leases are taken away next, or,
    when that was tried often enough, they are closed as stuck.
    """

    TYPE: ClassVar[str] = "job.stuck"

    reason: StuckReason
    detail: str
    idle_seconds: int
    chunks: list[int] = msgspec.field(default_factory=list)


class _JobEnded(_JobEvent, frozen=True, kw_only=True):
    total: int
    completed: int
    failed: int
    usage: Usage
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None


class JobCompleted(_JobEnded, frozen=True, kw_only=True):
    """Every request has a result and the files are readable."""

    TYPE: ClassVar[str] = "job.completed"


class JobExpired(_JobEnded, frozen=True, kw_only=True):
    """The window closed first; the files hold what was done and ``batch_expired`` for the rest."""

    TYPE: ClassVar[str] = "job.expired"


class JobCancelled(_JobEnded, frozen=True, kw_only=True):
    """The user cancelled first; the files hold what was done and ``batch_cancelled`` for the
    rest."""

    TYPE: ClassVar[str] = "job.cancelled"


class JobRetired(_JobEvent, frozen=True, kw_only=True):
    """It ended long ago: its output and error file and its results are gone, and clients are not
    shown it any more. What it used and cost stays on record."""

    TYPE: ClassVar[str] = "job.retired"


JobEvent = (
    JobSubmitted
    | JobStarted
    | JobFailed
    | JobCancelRequested
    | JobWindowClosed
    | JobFinalizing
    | JobStuck
    | JobCompleted
    | JobExpired
    | JobCancelled
    | JobRetired
)
