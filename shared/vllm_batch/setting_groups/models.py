"""The model registry, placement and swapping of models."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ModelSettings(BaseModel):
    """See the module; units come last in the names."""

    # Gateway: orchestrator
    model_residency_seconds_min: float = Field(
        300.0,
        ge=0,
        description="a model that has work keeps its worker at least this long, one that had "
        "online requests so long after the last",
    )
    model_deadline_margin_seconds: float = Field(
        3600.0, ge=0, description="a batch whose window closes within this (or within half of its "
        "window) gets its model loaded before others",
    )  # fmt: skip
    model_spread_chunks: int = Field(
        8, ge=1, description="a model gets one more worker when this many chunks wait per worker"
    )
    model_retry_seconds: float = Field(
        300.0, gt=0, description="pause after a worker failed to load a model"
    )

    # GPU worker
    model_drain_seconds: float = Field(
        60.0, ge=0, description="before another model is loaded, what runs may finish for this long"
    )
    lora: bool = Field(
        False, description="start vLLM ready for LoRA adapters, also where none is registered yet"
    )
    lora_rank_max: int = Field(
        16, ge=1, description="largest rank of a LoRA adapter; on a CPU every request of an engine "
        "that is ready for adapters pays for the rank, with an adapter or without",
    )  # fmt: skip
    lora_adapters_max: int = Field(
        8, ge=1, description="LoRA adapters that requests in the engine may use at the same time"
    )

    # Engine simulated
    simulated_load_seconds: float = Field(0.2, ge=0, description="time it takes to load a model")
