"""How a row shows to clients."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from batch_gateway.api.batch_object import batch_object
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import Usage
from vllm_batch.ids import FileId, JobId, ProjectId
from vllm_batch.projections.rows import BatchRow


def row(status: JobStatus, **fields: Any) -> BatchRow:
    return BatchRow(
        seq=1, job_id=JobId("batch_a"), project=ProjectId("p"), status=status,
        endpoint="/v1/embeddings", input_file_id=FileId("file-a"), completion_window="24h",
        created_at=1, expires_at=2, **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (JobStatus.VALIDATING, "validating"),
        (JobStatus.RUNNING, "in_progress"),
        (JobStatus.EXPIRING, "in_progress"),
        (JobStatus.CANCELLING, "cancelling"),
        (JobStatus.FINALIZING, "finalizing"),
        (JobStatus.COMPLETED, "completed"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.EXPIRED, "expired"),
        (JobStatus.CANCELLED, "cancelled"),
    ],
)
def test_every_status_has_a_word_of_openai(status: JobStatus, shown: str) -> None:
    assert batch_object(row(status)).status == shown
    assert len(JobStatus) == 9


def test_a_cancelled_batch_never_shows_finalizing() -> None:
    shown = batch_object(row(JobStatus.FINALIZING, cancelling_at=5, finalizing_at=6))
    assert (shown.status, shown.finalizing_at) == ("cancelling", None)
    shown = batch_object(row(JobStatus.CANCELLED, cancelling_at=5, finalizing_at=6, cancelled_at=7))
    assert (shown.status, shown.finalizing_at, shown.cancelled_at) == ("cancelled", None, 7)


def test_usage_shows_at_the_end_only() -> None:
    usage = Usage(input_tokens=3, cached_tokens=1, output_tokens=4, reasoning_tokens=2)
    assert batch_object(row(JobStatus.RUNNING, usage=usage)).usage is None
    shown = batch_object(row(JobStatus.COMPLETED, usage=usage)).usage
    assert msgspec.to_builtins(shown) == {
        "input_tokens": 3, "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 7,
    }  # fmt: skip
    assert batch_object(row(JobStatus.FAILED)).usage is None
