"""How vLLM's server is started: its command line and its environment. Owns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from batch_gpu_worker.engines.choice import Chosen
from batch_gpu_worker.engines.priority import SCHEDULING_ARGUMENTS
from vllm_batch.errors import EngineFailed
from vllm_batch.settings import Settings
from vllm_batch.tracing.export import traces_url

_CPU_KV_CACHE_GIB = "2"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # MaxLoRARanks of vllm.config.lora, 0.32


def has_nvidia_gpu() -> bool:
    """Tell whether the NVIDIA driver offers a device on this machine."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def engine_command(settings: Settings, chosen: Chosen, socket: str, max_num_seqs: int) -> list[str]:
    """Return the server's command line; a model's own arguments override the worker's. The order
    of requests is not theirs to choose.

    Raises:
        EngineFailed: a setting is missing.
    """
    base = chosen.base
    if settings.engine_python is None or not base.source:
        raise EngineFailed("engine vllm needs the settings engine_python and model")
    arguments = [
        str(settings.engine_python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", base.source,
        "--served-model-name", base.name,
        "--uds", socket,
        "--max-num-seqs", str(max_num_seqs),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if settings.otlp_endpoint:  # it goes on in the trace that each request names
        arguments += ["--otlp-traces-endpoint", traces_url(settings)]
    if chosen.lora:
        arguments += [
            "--enable-lora",
            "--max-lora-rank", str(_next_rank(settings.lora_rank_max)),
            "--max-loras", str(settings.lora_adapters_max),
        ]  # fmt: skip
    own = (*settings.engine_args, *base.engine_args)  # where both say something, the last one wins
    if not has_nvidia_gpu() and "--enforce-eager" not in own:
        arguments.append("--enforce-eager")  # compiling takes longer than it saves on a CPU
    return [*arguments, *own, *SCHEDULING_ARGUMENTS]


def _next_rank(rank: int) -> int:
    """Return the smallest rank that vLLM can be started for which has room for ``rank``."""
    return next((known for known in _LORA_RANKS if known >= rank), _LORA_RANKS[-1])


def child_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of what runs with the engine's Python: none of our settings, for
    they hold secrets."""
    return {
        name: value
        for name, value in inherited.items()
        if (not name.startswith("VLLM_BATCH_") or name == "VLLM_BATCH_STACK_MARK")
        and name not in {"NOTIFY_SOCKET", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }


def engine_environment(
    settings: Settings, chosen: Chosen, inherited: dict[str, str]
) -> dict[str, str]:
    """Return the server's environment."""
    kept = child_environment(inherited)
    if settings.otlp_endpoint:
        kept["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
        kept.setdefault("OTEL_SERVICE_NAME", "vllm")
    kept["PYTHONUNBUFFERED"] = "1"
    kept.setdefault("VLLM_NO_USAGE_STATS", "1")
    if chosen.lora:
        kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if Path(chosen.base.source or "").is_dir():
        kept.setdefault("HF_HUB_OFFLINE", "1")
    if not has_nvidia_gpu():
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_KV_CACHE_GIB)
        # Some functions are compiled whatever --enforce-eager says (the ranks of log-probabilities,
        # 0.32), at the first request that needs them; without a C++ compiler, or in a folder with a
        # space in its name, that request kills the server.
        kept.setdefault("TORCH_COMPILE_DISABLE", "1")
    return kept
