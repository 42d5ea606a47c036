"""What the simulated engine answers, in the shapes of OpenAI's API. Pure."""

from __future__ import annotations

import time
from typing import Any

import msgspec

_BYTES_PER_TOKEN = 4
_EMBEDDING_SIZE = 8


class _EmbeddingRequest(msgspec.Struct):
    input: str | list[Any]  # texts, one text as tokens, or several of those


class _ModelOf(msgspec.Struct):
    model: str


def asked_model(body: bytes) -> str:
    """Return the model that a request names; empty where it names none."""
    try:
        return msgspec.json.decode(body, type=_ModelOf).model
    except msgspec.DecodeError:
        return ""


class Shapes:
    """Bodies of answers, put together as bytes: a benchmark should not measure this.

    ``strict``: they name the model that was asked for, not always the same one.
    """

    def __init__(self, model: str, tokens: int) -> None:
        self.strict = False
        self._model = msgspec.json.encode(model)
        self._tokens = tokens

    def chat(self, body: bytes, digest: str) -> bytes:
        """Return a chat completion."""
        return (
            b'{"id":"chatcmpl-sim-%b","object":"chat.completion","created":%d,"model":%b,"choices":'
            b'[{"index":0,"message":{"role":"assistant","content":"simulated answer %b","refusal":'
            b'null},"logprobs":null,"finish_reason":"stop"}],%b,"system_fingerprint":"simulated"}'
        ) % self._parts(body, digest)

    def completion(self, body: bytes, digest: str) -> bytes:
        """Return a text completion."""
        return (
            b'{"id":"cmpl-sim-%b","object":"text_completion","created":%d,"model":%b,"choices":'
            b'[{"index":0,"text":"simulated answer %b","logprobs":null,"finish_reason":"stop"}],'
            b'%b,"system_fingerprint":"simulated"}'
        ) % self._parts(body, digest)

    def response(self, body: bytes, digest: str) -> bytes:
        """Return what the Responses API answers."""
        entered, token = len(body) // _BYTES_PER_TOKEN, digest.encode()
        return (
            b'{"id":"resp_sim_%b","object":"response","created_at":%d,"status":"completed","error":'
            b'null,"incomplete_details":null,"instructions":null,"metadata":{},"model":%b,"output":'
            b'[{"type":"message","id":"msg_sim_%b","status":"completed","role":"assistant","content":'
            b'[{"type":"output_text","text":"simulated answer %b","annotations":[]}]}],'
            b'"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"usage":{"input_tokens":%d,'
            b'"input_tokens_details":{"cached_tokens":0},"output_tokens":%d,"output_tokens_details":'
            b'{"reasoning_tokens":0},"total_tokens":%d},"system_fingerprint":"simulated"}'
        ) % (
            token, int(time.time()), self._named(body), token, token,
            entered, self._tokens, entered + self._tokens,
        )  # fmt: skip

    def embeddings(self, body: bytes, digest: str) -> bytes:
        """Return one vector per input."""
        try:
            given = msgspec.json.decode(body, type=_EmbeddingRequest).input
        except msgspec.ValidationError:
            given = ""
        single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        count = 1 if single else len(given)
        seed = int(digest, 16)
        entered = len(body) // _BYTES_PER_TOKEN
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": [
                    ((seed >> (8 * place)) + index) % 256 / 256 for place in range(_EMBEDDING_SIZE)
                ],
            }
            for index in range(count)
        ]
        usage = {"prompt_tokens": entered, "total_tokens": entered}
        model = msgspec.Raw(self._named(body))
        answer = {"object": "list", "data": data, "model": model, "usage": usage}
        return msgspec.json.encode({**answer, "system_fingerprint": "simulated"})

    def _named(self, body: bytes) -> bytes:
        return msgspec.json.encode(asked_model(body)) if self.strict else self._model

    def _parts(self, body: bytes, digest: str) -> tuple[bytes, int, bytes, bytes, bytes]:
        entered, token = len(body) // _BYTES_PER_TOKEN, digest.encode()
        usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
            entered, self._tokens, entered + self._tokens,
        )  # fmt: skip
        return token, int(time.time()), self._named(body), token, usage
