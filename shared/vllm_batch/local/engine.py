"""Which engine the stack's workers run, and the settings and environment that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EngineChoice:
    """What the user asked for."""

    engine: str
    model: str = ""
    """Hugging Face id or folder; empty: the small model that comes with the stack."""


@dataclass(frozen=True)
class PreparedEngine:
    """What the services are told."""

    settings: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)


def prepare_engine(
    choice: EngineChoice,
    needed: bool,
    overrides: Mapping[str, Any],
    on_progress: Callable[[str], None],
    variant_wanted: str = "auto",
) -> PreparedEngine:
    """Install what the engine needs, once per machine, and return how workers find it.

    Raises StackError when it cannot be installed.
    """
    # Said even when empty: VLLM_BATCH_MODEL in the caller's shell may be the name that clients use.
    settings: dict[str, Any] = {"engine": choice.engine, "model": choice.model}
    if choice.engine != "vllm" or not needed or "engine_python" in overrides:
        return PreparedEngine(settings)
    from vllm_batch.local import engine_env, model

    variant = engine_env.detect_variant(overrides.get("engine_variant", variant_wanted))
    python = engine_env.ensure(variant, on_progress=on_progress)
    settings["engine_python"] = python
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if not choice.model:
        folder = model.ensure(python, on_progress=on_progress)
        settings |= {"model": str(folder), "model_name": model.NAME}
    if Path(settings["model"]).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if variant is engine_env.Variant.CPU:
        environment["VLLM_CPU_KVCACHE_SPACE"] = "2"
        settings["engine_args"] = ["--enforce-eager", "--max-model-len", "1024"]
    return PreparedEngine(settings, environment)
