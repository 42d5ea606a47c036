"""Inference engines behind one small interface: a vLLM child process, any OpenAI-compatible URL,
or a simulation."""

from __future__ import annotations

from batch_gpu_worker.engines.base import Engine
from vllm_batch.settings import Settings


def open_engine(settings: Settings) -> Engine:
    """Return the engine that the settings name; nothing is started yet."""
    if settings.engine == "vllm":
        from batch_gpu_worker.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if settings.engine == "openai":
        from batch_gpu_worker.engines.openai import OpenAIEngine

        return OpenAIEngine(settings)
    from batch_gpu_worker.engines.simulated import SimulatedEngine

    return SimulatedEngine(settings)
