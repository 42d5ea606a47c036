"""How many parameters a decoder has by the shape in its config.json, and how many bits each. Pure.

    embeddings   V*H, twice if untied
    attention    H*d*(2*heads + 2*kv_heads); DeepSeek's latent attention by its ranks
    MLP          3*H*I; a layer of experts has 3*H*I for each, routed or shared, and the router
    norms        2*H a layer

Functions raise KeyError, TypeError, ValueError or ZeroDivisionError where the config says too
little, or nonsense.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

BITS_OF_METHOD = {
    "fp8": 8.0, "fbgemm_fp8": 8.0, "modelopt": 8.0, "int8": 8.0, "experts_int8": 8.0,
    "awq": 4.0, "awq_marlin": 4.0, "gptq": 4.0, "gptq_marlin": 4.0, "bitsandbytes": 4.0,
    "mxfp4": 4.25, "modelopt_fp4": 4.5,
}  # fmt: skip
"""What vLLM's ``--quantization`` or a config's ``quant_method`` means, where nothing else says so;
4.25 and 4.5: with the scale that 32 or 16 values share."""

_OLDER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
}


def text_part(config: Config) -> Config:
    """Return what a config says of the model that makes text, under today's names."""
    inner = config.get("text_config")
    found = {**config, **inner} if isinstance(inner, dict) else dict(config)
    for name, older in _OLDER_NAMES.items():
        for other in older:
            if name not in found and other in found:
                found[name] = found[other]
    if "intermediate_size" not in found and "hidden_size" in found:
        found["intermediate_size"] = found.get("n_inner") or 4 * found["hidden_size"]
    return found


def parameters(config: Config) -> int:
    """Return how many parameters the model has."""
    return _embeddings(config) + _layers(config)


def quantized_bytes(config: Config, bits: float, stored: float) -> float:
    """Return the weights' bytes where the layers have ``bits`` a value and the embeddings, which
    nobody quantizes, ``stored`` bytes."""
    return _embeddings(config) * stored + _layers(config) * bits / 8


def bits_of(config: Config) -> float | None:
    """Return the bits of a quantized value by the config's own word; None: nothing is."""
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        return None
    if said.get("load_in_8bit"):
        return 8.0
    for given in (said.get("bits"), said.get("w_bit"), _bits_of_groups(said)):
        if given:
            return float(given)
    return BITS_OF_METHOD.get(str(said.get("quant_method")))


def kv_values(config: Config) -> int:
    """Return how many values a token has in the cache of keys and values."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if latent := config.get("kv_lora_rank"):
        return int(layers * (latent + config["qk_rope_head_dim"]))
    return int(2 * layers * _kv_heads(config, heads) * _head_dim(config, heads))


def _bits_of_groups(said: Config) -> float | None:
    """Return what compressed-tensors says of its first group."""
    groups = said.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("num_bits"):
            return float(weights["num_bits"])
    return None


def _embeddings(config: Config) -> int:
    tied = 1 if config.get("tie_word_embeddings") else 2
    return int(config["vocab_size"] * config["hidden_size"] * tied)


def _layers(config: Config) -> int:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    experts = _experts(config)
    dense = min(layers, int(config.get("first_k_dense_replace") or 0)) if experts else layers
    mlp = dense * 3 * hidden * config["intermediate_size"]
    mlp += (layers - dense) * experts
    return int(mlp + layers * (_attention(config) + 2 * hidden) + hidden)


def _experts(config: Config) -> int:
    """Return the parameters of a layer's experts, 0 where there are none."""
    routed = next(
        (
            int(config[name])
            for name in ("num_local_experts", "num_experts", "n_routed_experts")
            if config.get(name)
        ),
        0,
    )
    if routed <= 1:
        return 0
    hidden = config["hidden_size"]
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    shared = int(config.get("n_shared_experts") or 0) * inner
    shared += int(config.get("shared_expert_intermediate_size") or 0)
    return int(3 * hidden * (routed * inner + shared) + hidden * routed)


def _attention(config: Config) -> int:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if config.get("kv_lora_rank"):
        return _latent_attention(config, hidden, heads)
    return int(hidden * _head_dim(config, heads) * (2 * heads + 2 * _kv_heads(config, heads)))


def _latent_attention(config: Config, hidden: int, heads: int) -> int:
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    plain = config.get("qk_nope_head_dim") or hidden // heads
    value = config.get("v_head_dim") or hidden // heads
    of_query = heads * (plain + rope)
    rank = config.get("q_lora_rank")
    query = rank * (hidden + of_query) if rank else hidden * of_query
    keys_and_values = hidden * (latent + rope) + latent * heads * (plain + value)
    return int(query + keys_and_values + heads * value * hidden)


def _kv_heads(config: Config, heads: int) -> int:
    if config.get("multi_query"):
        return 1
    return int(config.get("num_key_value_heads") or heads)


def _head_dim(config: Config, heads: int) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // heads)
