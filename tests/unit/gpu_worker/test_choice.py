"""What an engine loads next, and the way back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from batch_gpu_worker.engines import vllm_command
from batch_gpu_worker.engines.choice import Choice, Chosen
from batch_gpu_worker.engines.vllm_command import engine_command, engine_environment
from vllm_batch.errors import EngineFailed
from vllm_batch.settings import Settings
from vllm_batch.worker_control import ModelSpec

OTHER = Chosen(ModelSpec(name="other", source="org/other"), lora=False)
BROKEN = Chosen(ModelSpec(name="broken", source="org/broken"), lora=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path, model="org/mine", engine_python=tmp_path / "python",
        engine_args=("--max-model-len", "512"), lora_rank_max=20, lora_adapters_max=3,
    )  # fmt: skip


async def test_it_begins_with_what_is_configured(settings: Settings) -> None:
    choice = Choice(settings)
    assert choice.now.base == ModelSpec(name="mine", source="org/mine")
    await choice.settled()
    assert not choice.failed("there is nothing to go back to")


async def test_what_came_up_stays(settings: Settings) -> None:
    choice = Choice(settings)
    choice.adapters["tuned"] = "/tuned"
    choice.choose(OTHER)
    choice.came_up()
    await choice.settled()
    assert (choice.now, choice.adapters) == (OTHER, {})
    assert not choice.failed("later: an accident, no failed choice")


async def test_from_what_fails_it_goes_back_with_its_adapters(settings: Settings) -> None:
    choice = Choice(settings)
    before = choice.now
    choice.adapters["tuned"] = "/tuned"
    choice.choose(OTHER)
    choice.choose(BROKEN)  # told anew before the first had started
    waiting = asyncio.create_task(choice.settled())
    await asyncio.sleep(0)
    assert choice.failed("no such file")
    with pytest.raises(EngineFailed, match="no such file"):
        await waiting
    assert (choice.now, choice.adapters) == (before, {"tuned": "/tuned"})


def test_a_models_own_arguments_come_last(settings: Settings) -> None:
    base = ModelSpec(name="other", source="org/other", engine_args=("--max-model-len", "64"))
    command = engine_command(settings, Chosen(base, lora=False), "s.sock", 4)
    assert command[command.index("--model") + 1] == "org/other"
    assert command[command.index("--served-model-name") + 1] == "other"
    given = command.index("--max-model-len")
    assert command[given:] == [
        "--max-model-len", "512", "--max-model-len", "64", "--scheduling-policy", "priority",
    ]  # fmt: skip
    assert "--enable-lora" not in command


def test_adapters_are_allowed_for_where_there_may_be_some(settings: Settings) -> None:
    chosen = Chosen(OTHER.base, lora=True)
    command = engine_command(settings, chosen, "s.sock", 4)
    assert command[command.index("--max-lora-rank") + 1] == "32", "vLLM knows no rank 20"
    assert command[command.index("--max-loras") + 1] == "3"
    assert engine_environment(settings, chosen, {})["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in engine_environment(settings, OTHER, {})


def test_without_a_gpu_nothing_is_compiled_unless_the_user_wants_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TORCH_COMPILE_DISABLE"
    monkeypatch.setattr(vllm_command, "has_nvidia_gpu", lambda: False)
    assert engine_environment(settings, OTHER, {})[name] == "1"
    assert engine_environment(settings, OTHER, {name: "0"})[name] == "0"
    monkeypatch.setattr(vllm_command, "has_nvidia_gpu", lambda: True)
    assert name not in engine_environment(settings, OTHER, {})


def test_vllm_is_told_where_traces_go(settings: Settings) -> None:
    assert "--otlp-traces-endpoint" not in engine_command(settings, OTHER, "s.sock", 4)
    traced = settings.model_copy(update={"otlp_endpoint": "http://collector:4318/"})
    command = engine_command(traced, OTHER, "s.sock", 4)
    where = command[command.index("--otlp-traces-endpoint") + 1]
    assert where == "http://collector:4318/v1/traces"
    environment = engine_environment(traced, OTHER, {})
    assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
