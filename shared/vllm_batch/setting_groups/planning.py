"""How the orchestrator plans a batch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field


class PlanningSettings(BaseModel):
    """See the module; units come last in the names."""

    batch_models_max: int = Field(
        64, ge=1, le=1024, description="models in one batch that may mix them"
    )
    prefix_grouping: bool = Field(
        True, description="work off requests that share a long prefix together"
    )
    prefix_gain_min: float = Field(
        0.1,
        gt=0,
        le=1,
        description="group by prefix where that makes this part of all prompt bytes shared with "
        "the request before",
    )
    spool_dir: Path | None = Field(
        None,
        description="where a batch's requests and results are put in order; a local disk with room "
        "for both; default <home>/spool",
    )
