"""How vLLM's server is started: its command line and its environment. Owns nothing."""

from __future__ import annotations

from pathlib import Path

from vllm_batch.errors import EngineFailed
from vllm_batch.settings import Settings

_CPU_KV_CACHE_GIB = "2"


def has_nvidia_gpu() -> bool:
    """Tell whether the NVIDIA driver offers a device on this machine."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def engine_command(settings: Settings, socket: str, max_num_seqs: int) -> list[str]:
    """Return the server's command line. Raises EngineFailed where a setting is missing."""
    if settings.engine_python is None or not settings.model:
        raise EngineFailed("engine vllm needs the settings engine_python and model")
    arguments = [
        str(settings.engine_python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", settings.model,
        "--served-model-name", settings.model_name,
        "--uds", socket,
        "--max-num-seqs", str(max_num_seqs),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if not has_nvidia_gpu() and "--enforce-eager" not in settings.engine_args:
        arguments.append("--enforce-eager")  # compiling takes longer than it saves on a CPU
    return [*arguments, *settings.engine_args]


def engine_environment(settings: Settings, inherited: dict[str, str]) -> dict[str, str]:
    """Return the server's environment: none of our settings, for they hold secrets."""
    kept = {
        name: value
        for name, value in inherited.items()
        if (not name.startswith("VLLM_BATCH_") or name == "VLLM_BATCH_STACK_MARK")
        and name not in {"NOTIFY_SOCKET", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }
    kept["PYTHONUNBUFFERED"] = "1"
    kept.setdefault("VLLM_NO_USAGE_STATS", "1")
    if Path(settings.model).is_dir():
        kept.setdefault("HF_HUB_OFFLINE", "1")
    if not has_nvidia_gpu():
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_KV_CACHE_GIB)
    return kept
