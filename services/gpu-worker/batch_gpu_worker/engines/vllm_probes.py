"""Asking a vLLM server whether it lives: tokens counted, and the smallest possible request."""

from __future__ import annotations

import re
from collections import defaultdict

import msgspec

from batch_gpu_worker.engines.base import EngineLoad
from batch_gpu_worker.engines.http import HttpCaller
from batch_gpu_worker.engines.priority import ONLINE_PRIORITY
from vllm_batch.errors import EngineUnavailable

_TOKENS = re.compile(rb"^vllm:(?:prompt|generation)_tokens_total(?:\{.*\})? (\S+)$", re.MULTILINE)
_LOAD = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{.*\})? (\S+)$",
    re.MULTILINE,
)
_NOT_GENERATIVE = frozenset({400, 404, 405, 501})


def tokens_of(metrics: bytes) -> int | None:
    """Return how many tokens the server has read and made; None where it does not say."""
    found = _TOKENS.findall(metrics)
    return int(sum(map(float, found))) if found else None


def load_of(metrics: bytes) -> EngineLoad | None:
    """Return what the server says of its load; None where it does not say."""
    found: dict[bytes, float] = defaultdict(float)
    for name, value in _LOAD.findall(metrics):
        found[name] += float(value)
    if not found:
        return None
    return EngineLoad(
        int(found[b"num_requests_running"]),
        int(found[b"num_requests_waiting"]),
        found[b"kv_cache_usage_perc"],
    )


async def make_one_token(caller: HttpCaller, model: str) -> None:
    """Have one token made, or one embedding, ahead of what waits.

    Raises:
        EngineUnavailable: there was no answer.
    """
    probe = {"model": model, "priority": ONLINE_PRIORITY}
    body = msgspec.json.encode({**probe, "prompt": "a", "max_tokens": 1})
    answer = await caller.post("/v1/completions", body)
    if answer.status in _NOT_GENERATIVE:
        answer = await caller.post("/v1/embeddings", msgspec.json.encode({**probe, "input": "a"}))
    if answer.status >= 500:
        raise EngineUnavailable(f"a request for one token was answered {answer.status}")
