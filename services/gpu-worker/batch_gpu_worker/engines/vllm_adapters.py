"""Loading LoRA adapters into a vLLM server that runs, and taking them out of it. Owns nothing."""

from __future__ import annotations

import msgspec

from batch_gpu_worker.engines.http import HttpCaller, error_message
from vllm_batch.errors import EngineCrashed, EngineFailed


async def load(caller: HttpCaller, name: str, folder: str) -> None:
    """Have requests for ``name`` answered with the adapter in ``folder``.

    Raises:
        EngineFailed: vLLM cannot load it; the message says why.
        EngineUnavailable: vLLM does not answer, or is not well: that says nothing of the adapter.
    """
    body = msgspec.json.encode({"lora_name": name, "lora_path": folder})
    answer = await caller.post("/v1/load_lora_adapter", body)
    if answer.status == 200:
        return
    if (await caller.get("http://engine/health")).status != 200:
        raise EngineCrashed("vLLM died")
    raise EngineFailed(f"vLLM: {error_message(answer)}")


async def unload(caller: HttpCaller, name: str) -> None:
    """Forget an adapter.

    Raises:
        EngineUnavailable: vLLM does not answer.
    """
    await caller.post("/v1/unload_lora_adapter", msgspec.json.encode({"lora_name": name}))
