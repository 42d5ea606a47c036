"""What is said of a model before it is registered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.facts import START

from vllm_batch import model_fit
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.heartbeats import GpuMetrics, Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.model_estimate import Memory
from vllm_batch.settings import Settings

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 256,
}  # fmt: skip


async def test_the_arguments_that_every_engine_gets_count(tmp_path: Path) -> None:
    """A model's own ones come after them, as on the command line."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    settings = Settings(home=tmp_path, engine_args=("--max-model-len", "64", "--max-num-seqs=2"))

    async def needs(*engine_args: str) -> str | None:
        found = await model_fit.examine(
            MemoryEventStore(), None, str(tmp_path), base=None, engine_args=[*engine_args],
            settings=settings,
        )  # fmt: skip
        return found.needs

    assert "for 2 x 64 tokens" in str(await needs())
    assert "for 2 x 32 tokens" in str(await needs("--max-model-len", "32"))


@pytest.mark.parametrize(
    ("rank", "engine_args", "warned"),
    [(16, (), False), (64, (), True), (64, ("--max-lora-rank", "64"), False)],
)
async def test_an_adapter_of_a_rank_that_no_engine_is_started_for_is_warned_of(
    tmp_path: Path, rank: int, engine_args: tuple[str, ...], warned: bool
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    settings = Settings(home=tmp_path, engine_args=engine_args, lora_rank_max=16)
    found = await model_fit.examine(
        MemoryEventStore(), None, str(tmp_path), base="served", engine_args=[], settings=settings
    )
    assert any("VLLM_BATCH_LORA_RANK_MAX=64" in one for one in found.warnings) is warned


def test_a_worker_says_how_many_gpus_it_has() -> None:
    """They count as large as the smallest of them is."""
    gpus = [
        GpuMetrics(index=n, name="H100", memory_total_bytes=size) for n, size in enumerate([9, 8])
    ]
    beat = Heartbeat(
        worker_id=WorkerId("worker_1"), name="gpu-1", host="elsewhere", pid=1, time=START,
        state="ready", engine="vllm", gpus=gpus,
    )  # fmt: skip
    assert model_fit._memory_of(beat) == [("gpu-1", Memory(8, gpus=2))]
