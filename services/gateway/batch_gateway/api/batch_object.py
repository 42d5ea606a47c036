"""A batch as clients see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import LineError
from vllm_batch.projections.rows import BatchRow
from vllm_batch.projections.waiting import WaitingRow, why

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]

_STATUSES: dict[JobStatus, Status] = {
    JobStatus.VALIDATING: "validating",
    JobStatus.RUNNING: "in_progress",
    JobStatus.EXPIRING: "in_progress",
    JobStatus.CANCELLING: "cancelling",
    JobStatus.FINALIZING: "finalizing",
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.EXPIRED: "expired",
    JobStatus.CANCELLED: "cancelled",
}


class LineErrorObject(msgspec.Struct, frozen=True):
    """One reason why a batch file is invalid."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch file is invalid."""

    object: str = "list"
    data: list[LineErrorObject]


class RequestCounts(msgspec.Struct, frozen=True):
    """Requests of a batch by their result."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(msgspec.Struct, frozen=True):
    """What the input tokens were."""

    cached_tokens: int


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """What the output tokens were."""

    reasoning_tokens: int


class BatchUsage(msgspec.Struct, frozen=True):
    """Tokens of the successful requests."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class WaitingFor(msgspec.Struct, frozen=True):
    """A model that no worker serves now, and how many of the batch's requests need it."""

    model: str
    requests: int
    message: str


class Extension(msgspec.Struct, frozen=True):
    """What OpenAI's batches do not have. ``waiting_for``: the batch runs, and cannot go on with
    these until a worker serves them; it waits until its window closes."""

    waiting_for: list[WaitingFor]


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch."""

    id: str
    object: str = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None
    vllm_batch: Extension


def batch_object(row: BatchRow, waiting: Sequence[WaitingRow] = ()) -> Batch:
    """Return what clients see of ``row``, a batch that waits for ``waiting``.

    OpenAI's way from cancelling to cancelled has no finalizing in between, so there is none to see.
    """
    is_cancelled = row.cancelling_at is not None
    status = _STATUSES[row.status]
    if is_cancelled and status == "finalizing":
        status = "cancelling"
    return Batch(
        id=row.job_id,
        endpoint=row.endpoint,
        model=row.model,
        errors=_errors(row.errors),
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=status,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        created_at=row.created_at,
        in_progress_at=row.in_progress_at,
        expires_at=row.expires_at,
        finalizing_at=None if is_cancelled else row.finalizing_at,
        completed_at=row.completed_at,
        failed_at=row.failed_at,
        expired_at=row.expired_at,
        cancelling_at=row.cancelling_at,
        cancelled_at=row.cancelled_at,
        request_counts=RequestCounts(row.total, row.completed, row.failed),
        usage=_usage(row),
        metadata=row.metadata,
        vllm_batch=Extension([WaitingFor(one.model, one.requests, why(one)) for one in waiting]),
    )


def _errors(errors: list[LineError] | None) -> BatchErrors | None:
    if errors is None:
        return None
    return BatchErrors(
        data=[LineErrorObject(one.code, one.message, one.param, one.line) for one in errors]
    )


def _usage(row: BatchRow) -> BatchUsage | None:
    usage = row.usage
    if usage is None or _STATUSES[row.status] not in {"completed", "expired", "cancelled"}:
        return None
    return BatchUsage(
        usage.input_tokens,
        InputTokensDetails(usage.cached_tokens),
        usage.output_tokens,
        OutputTokensDetails(usage.reasoning_tokens),
        usage.input_tokens + usage.output_tokens,
    )
