"""What one project may use unless it was told otherwise (`vllm-batch project limit`)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class LimitSettings(BaseModel):
    """See the module; 0 is no limit. Units come last in the names."""

    project_requests_per_minute: int = Field(
        0, ge=0, description="calls of a project that start work, in a minute"
    )
    project_tokens_per_minute: int = Field(
        0, ge=0, description="tokens of a project's online requests, in a minute"
    )
    rate_share_seconds: float = Field(
        0.1, gt=0, description="how often gateways tell each other what projects have used"
    )
    project_queued_requests_max: int = Field(
        0, ge=0, description="requests in a project's unfinished batches"
    )
    project_storage_bytes_max: int = Field(0, ge=0, description="bytes in a project's files")
    budget_check_seconds: float = Field(
        60.0, gt=0, description="how often budgets are compared with what was used"
    )
    usage_flush_seconds: float = Field(
        10.0, gt=0, description="how often a gateway records what online requests used"
    )
