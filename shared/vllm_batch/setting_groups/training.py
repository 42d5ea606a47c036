"""Datasets, training runs and promotion."""

from __future__ import annotations

from pydantic import BaseModel, Field

_GIB = 1024**3


class TrainingSettings(BaseModel):
    """See the module; units come last in the names."""

    # Policy: when to train, and what becomes of it
    training_examples_min: int = Field(
        8, ge=1, description="a project with fewer validated annotations is not trained"
    )
    training_ground_truth_min: int = Field(
        10, ge=1, description="fewer tasks with ground truth say too little to promote anything by"
    )
    training_validation_share: float = Field(
        0.1, ge=0, lt=1, description="part of the examples that the loss is watched on"
    )
    training_retries_max: int = Field(
        2, ge=0, description="how often a run whose trainer died is tried again"
    )
    training_wait_seconds: float = Field(
        3600.0,
        gt=0,
        description="a run that no trainer takes, though none trains, fails after this",
    )
    training_silent_seconds: float = Field(
        120.0, gt=0, description="a trainer that says nothing for this long has lost its run"
    )
    training_load_seconds: float = Field(
        600.0, gt=0, description="an adapter that is not served and measured by then fails its run"
    )
    training_promote_margin: float = Field(
        0.0, ge=0, lt=1, description="promoted if its accuracy is higher by more than this"
    )

    # Trainer
    training_idle_seconds: float = Field(
        0.0,
        ge=0,
        description="a trainer waits until no batch was open this long: for a single GPU; 0: never",
    )
    training_seconds_max: float = Field(
        6 * 3600.0, gt=0, description="a training that takes longer is ended"
    )
    training_memory_bytes_max: int = Field(
        0, ge=0, description="largest memory of the training process, e.g. 16 GiB; 0: no limit",
        examples=[16 * _GIB],
    )  # fmt: skip
    training_rank: int = Field(16, ge=1, le=512, description="rank of LoRA adapters")
    training_epochs: int = Field(3, ge=1, description="how often each example is seen")
    training_batch_examples: int = Field(8, ge=1, description="examples per step")
    training_learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    training_tokens_max: int = Field(1024, ge=16, description="longer examples are cut off")
    training_seed: int = Field(7, ge=0, description="same seed and data: same adapter, on a CPU")
