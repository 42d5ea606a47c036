"""How much memory a model needs: against known models' own numbers, and said plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_batch.errors import InvalidInput
from vllm_batch.model_estimate import Estimate, Memory, estimate, stored_bytes

GIB = 1024**3
ADVICE = "shorten --max-model-len, or use more GPUs or fewer bits"
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "tie_word_embeddings": False, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip
SMOL: dict[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49152,
    "tie_word_embeddings": True, "max_position_embeddings": 8192, "dtype": "bfloat16",
}  # fmt: skip
MIXTRAL: dict[str, Any] = LLAMA_8B | {"num_local_experts": 8, "vocab_size": 32000}
QWEN3_MOE: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936,
    "num_experts": 128, "moe_intermediate_size": 768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK_LITE: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "intermediate_size": 10944, "moe_intermediate_size": 1408,
    "n_routed_experts": 64, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "vocab_size": 102400, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
GPT2: dict[str, Any] = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}


def needs(config: dict[str, Any], *arguments: str, weights: int | None = None) -> Estimate:
    found = estimate(config, list(arguments), weight_bytes=weights, sequences=8)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (SMOL, 134_515_008), (LLAMA_8B, 8_030_261_248), (MIXTRAL, 46_702_792_704),
        (QWEN3_MOE, 30_532_122_624), (DEEPSEEK_LITE, 15_706_484_224), (GPT2, 163_000_000),
    ],
    ids=["SmolLM2-135M", "Llama-3.1-8B", "Mixtral-8x7B", "Qwen3-30B-A3B", "DeepSeek-V2-Lite",
         "GPT-2"],
)  # fmt: skip
def test_parameters_by_the_shape(config: dict[str, Any], parameters: int) -> None:
    """What the models' cards say; of GPT-2 (no gate in its MLP, embeddings tied by habit and not by
    its config) it is too much rather than too little."""
    found = needs(config)
    assert found.weights_from == "shape"
    stated = found.weight_bytes / 2
    assert parameters <= stated * 1.0001
    assert stated == pytest.approx(parameters, rel=0.2 if config is GPT2 else 0.0001)


def test_the_cache_of_keys_and_values() -> None:
    smol = needs(SMOL, "--max-model-len", "4096")
    assert smol.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert smol.kv_bytes == 23_040 * 8 * 4096
    assert needs(LLAMA_8B).kv_bytes_per_token == 131_072
    assert needs(SMOL).tokens == 8192
    assert needs(SMOL, "--kv-cache-dtype=fp8").kv_bytes_per_token == 11_520
    latent = LLAMA_8B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert needs(latent).kv_bytes_per_token == 32 * 576 * 2


def test_engine_arguments_count() -> None:
    found = needs(
        LLAMA_8B, "--max-model-len=32k", "--max_num_seqs", "16", "--tensor-parallel-size", "2",
        "--gpu-memory-utilization", "0.5",
    )  # fmt: skip
    assert (found.tokens, found.sequences, found.gpus, found.utilization) == (32_000, 16, 2, 0.5)
    assert needs(SMOL, "-tp", "4", "-pp=2", "-dp", "3").gpus_needed == 24
    assert needs(LLAMA_8B, "-q", "fp8") == needs(LLAMA_8B, "--quantization", "fp8")
    assert needs(SMOL, "--dtype", "float32").weight_bytes == 2 * needs(SMOL).weight_bytes


@pytest.mark.parametrize(
    ("length", "tokens"),
    [
        ("8192", 8192), ("8k", 8000), ("8K", 8192), ("25.6k", 25_600), ("1M", 2**20),
        ("auto", 4096), ("-1", 4096),
    ],
)  # fmt: skip
def test_lengths_are_read_as_vllm_reads_them(length: str, tokens: int) -> None:
    assert needs(LLAMA_8B, "--max-model-len", length).tokens == tokens
    assert needs(LLAMA_8B, f"--max_model_len={length}").tokens == tokens


def test_float32_files_are_served_in_16_bits() -> None:
    found = needs(SMOL | {"dtype": "float32"}, weights=538_060_032)
    assert found.weight_bytes == 269_030_016
    assert found.kv_bytes_per_token == 23_040


def test_a_quantized_model_needs_what_its_files_have() -> None:
    assert needs(LLAMA_8B, weights=5_700_000_000).weight_bytes == 5_700_000_000
    packed = LLAMA_8B | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    for arguments in ((), ("--dtype", "float32"), ("--quantization", "awq_marlin")):
        assert needs(packed, *arguments, weights=5_700_000_000).weight_bytes == 5_700_000_000


@pytest.mark.parametrize(
    ("said", "bits"),
    [
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "awq", "w_bit": 4}, 4),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "mxfp4"}, 4.25),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            4,
        ),
        ({"quant_method": "of a later year"}, 16),
        (None, 16),
        ("nonsense", 16),
    ],
)
def test_a_quantized_model_whose_files_are_not_seen(said: Any, bits: float) -> None:
    """The layers are quantized, the embeddings are not."""
    embeddings = 2 * 128_256 * 4096
    layers = 8_030_261_248 - embeddings
    found = needs(LLAMA_8B | {"quantization_config": said})
    assert found.weight_bytes == pytest.approx(2 * embeddings + layers * bits / 8)


def test_what_is_quantized_when_it_is_loaded() -> None:
    plain, files = needs(LLAMA_8B).weight_bytes, 16_060_522_496
    assert plain == files
    smaller = needs(LLAMA_8B, "--quantization", "fp8", weights=files)
    assert plain / 2 < smaller.weight_bytes < plain * 0.6
    assert needs(LLAMA_8B, "--quantization=bitsandbytes").weight_bytes < plain * 0.4


def test_heads_that_share_keys_and_values_need_less_cache() -> None:
    alone = LLAMA_8B | {"num_key_value_heads": None}
    assert needs(alone).kv_bytes_per_token == 4 * needs(LLAMA_8B).kv_bytes_per_token
    assert needs(alone | {"multi_query": True}).kv_bytes_per_token == 2 * 32 * 128 * 2
    assert needs(DEEPSEEK_LITE).kv_bytes_per_token == 27 * 576 * 2


def test_the_text_part_of_a_model_that_sees() -> None:
    assert needs({"text_config": SMOL}).weight_bytes == needs(SMOL).weight_bytes


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        (24 * GIB, "the GPU of w has 25.77 GB: fits"),
        (2 * GIB, "the GPU of w has 2.15 GB: fits with 7 of 8 full-length sequences at a time"),
        (1 * GIB, f"the GPU of w has 1.07 GB: does not fit; {ADVICE}"),
    ],
)
def test_the_verdict_has_the_numbers(memory: int, verdict: str) -> None:
    found = needs(SMOL, "--max-model-len", "4096")
    assert found.needs() == (
        "needs about 0.27 GB weights + 0.75 GB KV cache for 8 x 4096 tokens + 1.00 GB for the rest"
    )
    assert found.verdict(Memory(memory, gpus=1), "w") == verdict


def test_several_gpus_share_a_model() -> None:
    big = needs(LLAMA_8B, "--max-model-len", "8192")
    both = needs(LLAMA_8B, "--max-model-len", "8192", "--tensor-parallel-size", "2")
    two = Memory(16 * GIB, gpus=2)
    assert big.sequences_within(two) == 0
    assert both.sequences_within(two) > 8
    assert "each, 2 are used" in both.verdict(two, "w")


def test_gpus_that_a_worker_does_not_have_hold_nothing() -> None:
    spread = needs(LLAMA_8B, "--max-model-len", "8192", "--tensor-parallel-size", "8")
    assert spread.sequences_within(Memory(80 * GIB, gpus=8)) > 8
    one = Memory(80 * GIB, gpus=1)
    assert spread.sequences_within(one) == 0
    assert spread.verdict(one, "w") == "needs 8 GPUs, w has 1: does not fit"
    replicas = needs(SMOL, "--data-parallel-size", "2")
    assert replicas.verdict(one, "w") == "needs 2 GPUs, w has 1: does not fit"
    assert replicas.sequences_within(Memory(80 * GIB, gpus=2)) == needs(SMOL).sequences_within(one)


def test_a_host_has_its_memory_once() -> None:
    host = Memory(16 * GIB, gpus=0)
    spread = needs(LLAMA_8B, "--max-model-len", "8192", "-tp", "2")
    assert spread.sequences_within(host) == 0
    assert spread.verdict(host, "w").startswith("the host of w has 17.18 GB: does not fit")


@pytest.mark.parametrize(
    "config",
    [
        {}, {"hidden_size": 8}, SMOL | {"num_hidden_layers": None},
        {"text_config": None}, LLAMA_8B | {"num_attention_heads": 0},
        SMOL | {"max_position_embeddings": "long"}, SMOL | {"num_key_value_heads": [1, 2]},
    ],
)  # fmt: skip
def test_a_config_that_says_too_little(config: dict[str, Any]) -> None:
    assert estimate(config, [], weight_bytes=None, sequences=8) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-model-len", "many"],
        ["--max-model-len", "0"],
        ["--max-model-len", "25.6K"],
        ["--max-model-len", "8 k"],
        ["--tensor-parallel-size", "-1"],
        ["--gpu-memory-utilization", "90"],
    ],
)
def test_arguments_that_are_no_numbers(arguments: list[str]) -> None:
    with pytest.raises(InvalidInput, match=arguments[0]):
        estimate(SMOL, arguments, weight_bytes=None, sequences=8)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0hello")
    with pytest.raises(InvalidInput, match="safetensors"):
        stored_bytes(tmp_path)
