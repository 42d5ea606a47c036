"""Which engine the stack's workers run, and the settings and environment that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_batch.settings import Settings

_CPU_KVCACHE_GIB = "2"
_SMALL_MODEL_ARGUMENTS = ("--max-model-len", "1024")


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
    base: Settings,
    *,
    needed: bool,
    on_progress: Callable[[str], None],
    training: bool = False,
) -> PreparedEngine:
    """Install what the engine needs, once per machine, and return how workers find it.

    ``base``: what the user has set; an engine of the user's own is taken as it is. ``training``:
    adapters are to be fine-tuned with it too. Raises StackError when the installation fails.
    """
    # Said even when empty: VLLM_BATCH_MODEL in the caller's shell may be the name that clients use.
    settings: dict[str, Any] = {"engine": choice.engine, "model": choice.model}
    if choice.engine != "vllm" or not needed or base.engine_python:
        return PreparedEngine(settings)
    from vllm_batch.local import engine_env, model

    variant = engine_env.detect_variant(base.engine_variant)
    install = engine_env.ensure_training if training else engine_env.ensure
    python = install(variant, on_progress=on_progress)
    settings["engine_python"] = python
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if not choice.model:
        folder = model.ensure(python, on_progress=on_progress)
        settings["model"] = str(folder)
    if Path(settings["model"]).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if variant is engine_env.Variant.CPU:
        environment["VLLM_CPU_KVCACHE_SPACE"] = _CPU_KVCACHE_GIB
        if "engine_args" not in base.model_fields_set:
            small = () if choice.model else _SMALL_MODEL_ARGUMENTS
            settings["engine_args"] = ["--enforce-eager", *small]
    return PreparedEngine(settings, environment)
