"""Real vLLM for tests: installed once per machine, with the small model of the stack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm_batch.local.engine import EngineChoice, prepare_engine
from vllm_batch.settings import Settings

READY_SECONDS = 300.0
_SHARED_MEMORY = Path("/dev/shm")


def real_engine_settings(home: Path) -> dict[str, Any]:
    """Return the settings that make an engine real; its environment is set for this process."""
    base = Settings(home=home)
    prepared = prepare_engine(EngineChoice("vllm"), base, needed=True, on_progress=print)
    os.environ |= prepared.environment
    return prepared.settings


def leaked_shared_memory() -> set[str]:
    """Return Python's segments of shared memory: what a killed vLLM would leave behind."""
    return {entry.name for entry in _SHARED_MEMORY.glob("psm_*")}
