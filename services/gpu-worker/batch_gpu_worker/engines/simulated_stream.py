"""A simulated answer as server-sent events, in the shapes that vLLM streams. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

CONTENT_TYPE = "text/event-stream; charset=utf-8"
_DONE = b"data: [DONE]\n\n"


class _Options(msgspec.Struct):
    include_usage: bool = False


class StreamWish(msgspec.Struct):
    """What a body says about streaming."""

    stream: bool | None = None
    stream_options: _Options | None = None


def wish_of(body: bytes) -> StreamWish:
    """Return what ``body`` wants; a body that cannot be read wants no stream."""
    try:
        return msgspec.json.decode(body, type=StreamWish)
    except msgspec.DecodeError:
        return StreamWish()


def events_of(endpoint: str, answer: bytes, tokens: int, wish: StreamWish) -> list[bytes]:
    """Return a whole ``answer`` as events: one for each token, and what goes before and after."""
    whole = msgspec.json.decode(answer)
    if endpoint == "/v1/responses":
        return _response_events(whole, tokens)
    choice = whole["choices"][0]
    chat = "message" in choice
    text = choice["message"]["content"] if chat else choice["text"]
    head = {key: whole[key] for key in ("id", "object", "created", "model", "system_fingerprint")}
    if chat:
        head["object"] = "chat.completion.chunk"

    def chunk(part: Any, finish_reason: str | None = None) -> bytes:
        content = {"delta": part} if chat else {"text": part}
        choices = [{"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}]
        return _event({**head, "choices": choices})

    parts = _parts(text, tokens)
    events = [chunk({"content": part} if chat else part) for part in parts[:-1]]
    last = {"content": parts[-1]} if chat else parts[-1]
    if chat:
        events[:0] = [chunk({"role": "assistant", "content": ""})]
    events.append(chunk(last, "stop"))
    if wish.stream_options is not None and wish.stream_options.include_usage:
        events.append(_event({**head, "choices": [], "usage": whole["usage"]}))
    return [*events, _DONE]


def _response_events(whole: dict[str, Any], tokens: int) -> list[bytes]:
    item = whole["output"][0]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    unfinished = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": unfinished}]
    events += [
        {"type": "response.output_text.delta", **place, "delta": part, "logprobs": []}
        for part in _parts(item["content"][0]["text"], tokens)
    ]
    events.append({"type": "response.completed", "response": whole})
    return [
        b"event: %b\n%b" % (event["type"].encode(), _event({**event, "sequence_number": number}))
        for number, event in enumerate(events)
    ]


def _parts(text: str, count: int) -> list[str]:
    """Return ``text`` cut into ``count`` parts; some are empty where it is too short."""
    ends = [len(text) * n // count for n in range(count + 1)]
    return [text[start:end] for start, end in pairwise(ends)]


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(data)
