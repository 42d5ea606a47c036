"""How much memory a model needs: an estimate from its configuration, said plainly. No GPU is asked.

    weights    the tensors' bytes in the files; else the parameters of a decoder of this shape
               (`model_shape`) times the dtype's bytes, or the bits of its quantization;
               ``--quantization`` makes layers smaller that are not quantized in the files
    KV cache   2 · layers · kv_heads · head_dim · bytes a token (a key and a value; vLLM,
               "Conserving Memory"); layers · (kv_lora_rank + qk_rope_head_dim) with latent
               attention (DeepSeek); times tokens a sequence and sequences at once
    overhead   1 GB a GPU: the CUDA context, compiled graphs and activations of a prefill; our
               allowance, as vLLM measures its own only by a trial run

Sliding windows and hybrid layers need less than this says. vLLM takes
``--gpu-memory-utilization`` of a GPU and starts only if one sequence of full length fits; with
``--max-model-len auto`` it shortens that until one does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from vllm_batch import model_shape
from vllm_batch.errors import InvalidInput
from vllm_batch.model_check import options_of

OVERHEAD_BYTES = 1_000_000_000
UTILIZATION = 0.9
"""vLLM's usual ``--gpu-memory-utilization``."""
TOKENS_UNKNOWN = 4096
"""The length of a sequence where nobody says one, or vLLM is to find out what fits."""
_HEADER_BYTES_MAX = 100 * 1024 * 1024
_DTYPE_BYTES = {
    "float32": 4.0, "float": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0, "fp8": 1.0,
    "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "int8": 1.0,
}  # fmt: skip
_COUNT = re.compile(r"(\d+)|(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])")
_AUTO = frozenset({"auto", "-1"})
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AUTO_BYTES_MAX = 2.0  # vLLM's ``--dtype auto`` serves float32 weights in 16 bits


class Memory(NamedTuple):
    """What a worker has: ``gpus`` of ``each_bytes``, or (0 of them) a host of so many bytes."""

    each_bytes: int
    gpus: int


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What one model needs with ``sequences`` at once of ``tokens`` each, over the ``gpus`` that
    hold it once; a worker runs ``replicas`` of it."""

    weight_bytes: int
    weights_from: Literal["files", "shape"]
    kv_bytes_per_token: int
    tokens: int
    sequences: int
    gpus: int
    replicas: int
    utilization: float

    @property
    def gpus_needed(self) -> int:
        """How many GPUs a worker has to have."""
        return self.gpus * self.replicas

    @property
    def sequence_bytes(self) -> int:
        """The KV cache of one sequence of full length."""
        return self.kv_bytes_per_token * self.tokens

    @property
    def kv_bytes(self) -> int:
        """The KV cache of all sequences at once."""
        return self.sequence_bytes * self.sequences

    @property
    def overhead_bytes(self) -> int:
        """What is neither weights nor KV cache."""
        return OVERHEAD_BYTES * self.gpus

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.kv_bytes + self.overhead_bytes

    def sequences_within(self, memory: Memory) -> int:
        """Return how many sequences of full length a worker holds at once, each replica; 0: the
        model does not fit."""
        if 0 < memory.gpus < self.gpus_needed:
            return 0
        used = self.gpus if memory.gpus else 1
        share = int(memory.each_bytes * used * self.utilization)
        left = share - self.weight_bytes - self.overhead_bytes
        return max(0, left // max(1, self.sequence_bytes))

    def needs(self) -> str:
        """Say what it needs."""
        return (
            f"needs about {shown(self.weight_bytes)} weights + {shown(self.kv_bytes)} KV cache for "
            f"{self.sequences} x {self.tokens} tokens + {shown(self.overhead_bytes)} for the rest"
        )

    def verdict(self, memory: Memory, worker: str) -> str:
        """Say whether it fits on a worker."""
        if 0 < memory.gpus < self.gpus_needed:
            return f"needs {self.gpus_needed} GPUs, {worker} has {memory.gpus}: does not fit"
        fitting = self.sequences_within(memory)
        many = f" each, {self.gpus} are used" if memory.gpus and self.gpus > 1 else ""
        has = f"the {'GPU' if memory.gpus else 'host'} of {worker} has "
        has += f"{shown(memory.each_bytes)}{many}"
        if fitting >= self.sequences:
            return f"{has}: fits"
        if fitting:
            return f"{has}: fits with {fitting} of {self.sequences} full-length sequences at a time"
        return f"{has}: does not fit; shorten --max-model-len, or use more GPUs or fewer bits"


def estimate(
    config: dict[str, Any],
    engine_args: list[str],
    *,
    weight_bytes: int | None,
    sequences: int,
) -> Estimate | None:
    """Return what a model with this config.json needs; None where the config does not say.

    ``weight_bytes``: of the files, where known. ``sequences``: how many run at once.

    Raises:
        InvalidInput: an engine argument that counts here is no number.
    """
    config = model_shape.text_part(config)
    try:
        options = options_of(engine_args)
        stored, width = _dtype_bytes(options.get("dtype", "auto"), config)
        cached = options.get("kv-cache-dtype", "auto")
        return Estimate(
            weight_bytes=_weights(config, options, weight_bytes, stored, width),
            weights_from="files" if weight_bytes else "shape",
            kv_bytes_per_token=int(model_shape.kv_values(config) * _DTYPE_BYTES.get(cached, width)),
            tokens=_tokens(options, config),
            sequences=_number(options, "max-num-seqs") or sequences,
            gpus=(_number(options, "tensor-parallel-size") or 1)
            * (_number(options, "pipeline-parallel-size") or 1),
            replicas=_number(options, "data-parallel-size") or 1,
            utilization=_share(options),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def stored_bytes(folder: Path) -> int | None:
    """Return the bytes of a folder's tensors by the headers of its safetensors files."""
    found = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _HEADER_BYTES_MAX:
                raise InvalidInput(f"{path} is no safetensors file", param="source")
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise InvalidInput(f"{path} is no safetensors file", param="source") from error
        header.pop("__metadata__", None)
        found += sum(end - start for start, end in (t["data_offsets"] for t in header.values()))
    return found or None


def shown(size_bytes: int) -> str:
    """Return a size in GB, or MB where that says more."""
    if size_bytes < 100_000_000:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e9:.2f} GB"


def _weights(
    config: dict[str, Any],
    options: dict[str, str],
    in_files: int | None,
    stored: float,
    width: float,
) -> int:
    """Return the weights' bytes on the GPUs; ``stored``, ``width``: of a value that is not
    quantized, in the files and when served."""
    packed = model_shape.bits_of(config)
    if in_files and packed:
        return in_files
    bits = packed or model_shape.BITS_OF_METHOD.get(options.get("quantization", ""))
    if bits is None:
        return int((in_files or model_shape.parameters(config) * stored) * width / stored)
    shrunk = model_shape.quantized_bytes(config, bits, width)
    if not in_files:
        return int(shrunk)
    return int(in_files / stored * shrunk / model_shape.parameters(config))


def _dtype_bytes(option: str, config: dict[str, Any]) -> tuple[float, float]:
    """Return the bytes of a value as it is stored and as it is served."""
    said = str(config.get("dtype") or config.get("torch_dtype") or "float16")
    stored = _DTYPE_BYTES.get(said, 2.0)
    if option in {"", "auto"}:
        return stored, min(stored, _AUTO_BYTES_MAX)
    return stored, _DTYPE_BYTES.get(option, stored)


def _tokens(options: dict[str, str], config: dict[str, Any]) -> int:
    longest = int(config.get("max_position_embeddings") or TOKENS_UNKNOWN)
    if options.get("max-model-len", "").strip().lower() in _AUTO:
        return min(longest, TOKENS_UNKNOWN)
    return _number(options, "max-model-len") or longest


def _number(options: dict[str, str], name: str) -> int | None:
    """Return a count as vLLM reads it: 8k is 8000, 8K is 8192."""
    if name not in options:
        return None
    value = 0
    if found := _COUNT.fullmatch(options[name].strip()):
        plain, decimal, small, binary, large = found.groups()
        if plain:
            value = int(plain)
        elif decimal:
            value = int(float(decimal) * _DECIMAL[small])
        else:
            value = int(binary) * _BINARY[large]
    if value < 1:
        raise InvalidInput(f"--{name} {options[name]} is no number from 1 on", param="engine_args")
    return value


def _share(options: dict[str, str]) -> float:
    text = options.get("gpu-memory-utilization", str(UTILIZATION))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise InvalidInput(
            f"--gpu-memory-utilization {text} is not between 0 and 1", param="engine_args"
        )
    return value
