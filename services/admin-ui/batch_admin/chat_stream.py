"""One streamed chat with a model, through the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import msgspec

from batch_admin.gateway_calls import checked
from batch_admin.services import Services
from vllm_batch.errors import Rejected

PATH = "/v1/chat/completions"
_DATA = "data: "
_DONE = "[DONE]"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What came next: more text, or, at the end, the count of output tokens."""

    text: str = ""
    output_tokens: int | None = None


async def chat(services: Services, body: dict[str, Any]) -> AsyncGenerator[Piece, None]:
    """Yield an answer as it comes. Raises Rejected with the gateway's words, httpx.HTTPError."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with services.gateway.stream("POST", PATH, json=asked) as answer:
        if not answer.is_success:
            await answer.aread()
            checked(answer)
        async for line in answer.aiter_lines():
            data = line.removeprefix(_DATA)
            if data == _DONE:
                return
            if line.startswith(_DATA):
                yield _piece(msgspec.json.decode(data))


def _piece(chunk: dict[str, Any]) -> Piece:
    if error := chunk.get("error"):
        raise Rejected(error.get("message", "the engine broke off"))
    choices, usage = chunk.get("choices") or [], chunk.get("usage")
    text = choices[0]["delta"].get("content") if choices else ""
    return Piece(text=text or "", output_tokens=usage["completion_tokens"] if usage else None)
