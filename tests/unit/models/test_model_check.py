"""What is refused before a model is registered: names, engine arguments, folders."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from vllm_batch import model_source
from vllm_batch.errors import InvalidInput
from vllm_batch.model_check import (
    arguments_in,
    check_engine_args,
    check_name,
    check_source,
    options_of,
)


@pytest.mark.parametrize("name", ["m", "org/model", "Ünïcode model", "x" * 256])
def test_names_that_can_be_asked_for(name: str) -> None:
    check_name(name, param="name")


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "a\x00", " a", "a ", "\x7f", "a\u200bb"])
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_name(name, param="aliases")
    assert raised.value.param == "aliases"


@pytest.mark.parametrize("source", ["", "x" * 1025, "org/mo\x00del"])
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(InvalidInput, match="org/model"):
        check_source(source)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "other"], ["--port=80"], ["--served_model_name", "x"], ["--dtype", "auto",
        "--uds", "x.sock"], ["max-model-len", "10"], ["--x"] * 101, ["-tp", "2", "--port", "1"],
    ],
)  # fmt: skip
def test_engine_arguments_that_take_the_server_away(arguments: list[str]) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_engine_args(arguments)
    assert raised.value.param == "engine_args"


def test_the_order_of_requests_is_not_for_a_model_to_choose() -> None:
    with pytest.raises(InvalidInput, match="online requests go before batch requests"):
        check_engine_args(["--scheduling-policy", "fcfs"])


def test_engine_arguments_that_are_allowed() -> None:
    arguments = ["--max-model-len", "1024", "--enforce-eager", "--kv_cache_dtype=fp8"]
    check_engine_args(arguments)
    check_engine_args([])
    check_engine_args(["-tp=4"])
    short = ["-tp=4", "-q", "awq", "--max-model-len", "-1", "--dtype", "half", "-sc"]
    assert options_of(short) == {
        "tensor-parallel-size": "4", "quantization": "awq", "max-model-len": "-1",
        "dtype": "half", "sc": "",
    }  # fmt: skip
    assert options_of(arguments) == {
        "max-model-len": "1024", "enforce-eager": "", "kv-cache-dtype": "fp8",
    }  # fmt: skip


def test_engine_arguments_as_they_are_written() -> None:
    assert arguments_in("--foo 'a b' -tp=2") == ["--foo", "a b", "-tp=2"]
    with pytest.raises(InvalidInput, match="cannot be read") as raised:
        arguments_in("--foo 'bar")
    assert raised.value.param == "engine_args"


def write_model(folder: Path, name: str = "config.json", **content: object) -> Path:
    """Write a configuration and one tensor of 12 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    header = json.dumps({"t": {"dtype": "F16", "shape": [6], "data_offsets": [0, 12]}}).encode()
    tensors = struct.pack("<Q", len(header)) + header + bytes(12)
    (folder / "model.safetensors").write_bytes(tensors)
    return folder


def test_a_folder_with_a_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", hidden_size=8)
    found = model_source.look(str(folder), adapter=False)
    assert (found.config, found.weight_bytes) == ({"hidden_size": 8}, 12)
    assert not found.warnings


def test_a_folder_with_an_adapter(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a", "adapter_config.json", r=16, peft_type="LORA")
    found = model_source.look(str(folder), adapter=True)
    assert (found.adapter, found.weight_bytes) == ({"r": 16, "peft_type": "LORA"}, 12)


def test_a_model_without_weights_is_warned_of(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert "no weights" in model_source.look(str(folder), adapter=False).warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "adapter", "message"),
    [
        ("config.json", {}, True, "whole model"),
        ("adapter_config.json", {"r": 8}, False, "LoRA adapter"),
        ("other.json", {}, False, "no model in the format"),
        ("adapter_config.json", {"r": 0}, True, "rank"),
        ("adapter_config.json", {"r": 1024}, True, "rank"),
        ("adapter_config.json", {}, True, "rank"),
        ("adapter_config.json", {"r": 8, "peft_type": "IA3"}, True, "IA3"),
    ],
)
def test_folders_that_are_refused(
    tmp_path: Path, name: str, content: dict[str, object], adapter: bool, message: str
) -> None:
    folder = write_model(tmp_path / "m", name, **content)
    with pytest.raises(InvalidInput, match=message) as raised:
        model_source.look(str(folder), adapter=adapter)
    assert raised.value.param == "source"


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (write_model(tmp_path / "m") / "config.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"config\.json"):
        model_source.look(str(tmp_path / "m"), adapter=False)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no folder"):
        model_source.look(str(tmp_path / "nothing"), adapter=False)


def test_what_is_not_checked_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in model_source.look("org/model", adapter=False).warnings[0]
    assert "blob store" in model_source.look("blob:adapters/run_1", adapter=True).warnings[0]


def test_an_adapter_of_another_base_is_warned_of() -> None:
    made_for = {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert model_source.base_warning(made_for, "/models/SmolLM2-135M-Instruct") is None
    assert model_source.base_warning({}, "org/other") is None
    warning = model_source.base_warning(made_for, "org/other")
    assert warning is not None
    assert "org/other" in warning
