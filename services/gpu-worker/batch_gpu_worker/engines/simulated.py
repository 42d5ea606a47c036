"""An engine that computes nothing, in this process: for tests and benchmarks of the rest.

Deterministic: the same body and seed give the same answer. It says "simulated" in every answer.
Marks anywhere in a body make it misbehave, so that a test can do so from a batch file:

    [[sim:400]] … [[sim:599]]   answer with that status and an error body
    [[sim:sleep=2]]             take 2 seconds (on top of the latency)
    [[sim:hang]]                never answer, nor a canary as long as it holds such a request
    [[sim:crash]]               crash: every request it holds is lost, and it is back a moment later
    [[sim:oom=16]]              the same, for want of memory, while max_num_seqs is above 16
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec

from batch_gpu_worker.engines.base import (
    EngineResponse,
    error_body,
    ignore_death,
    unsupported,
)
from batch_gpu_worker.engines.death import Death
from vllm_batch.errors import EngineCrashed, EngineDown
from vllm_batch.settings import Settings

RESTART_SECONDS = 0.2
_BYTES_PER_TOKEN = 4
_EMBEDDING_SIZE = 8
_MARK = re.compile(rb"\[\[sim:(crash|hang|sleep=([0-9.]+)|([45]\d\d)|oom=(\d+))\]\]")
_MARK_START = b"[[sim:"
CRASH = Death("crashed", "simulated")


class _EmbeddingRequest(msgspec.Struct):
    input: str | list[Any]  # texts, one text as tokens, or several of those


class SimulatedEngine:
    """See `Engine`."""

    def __init__(self, settings: Settings, *, rng: random.Random | None = None) -> None:
        self.ready = asyncio.Event()
        self.on_death: Callable[[Death], None] = ignore_death
        self.max_num_seqs = settings.engine_max_num_seqs
        self._tokens_made = 0
        self._hanging = 0
        self._halted = False
        self._model = settings.model_name
        self._latency = settings.simulated_latency_seconds
        self._error_rate = settings.simulated_error_rate
        self._tokens = settings.simulated_output_tokens
        self._rng = rng or random.Random(settings.simulated_seed)  # noqa: S311 - no secret
        self._digest = hashlib.blake2b(digest_size=8, key=str(settings.simulated_seed).encode())
        self._journal_path = settings.simulated_journal
        self._journal: int | None = None
        self._held: set[asyncio.Future[None]] = set()
        self._restart: asyncio.TimerHandle | None = None
        shape = _Shapes(self._model, self._tokens)
        self._shapes: dict[str, Callable[[bytes, str], bytes]] = {
            "/v1/chat/completions": shape.chat,
            "/v1/completions": shape.completion,
            "/v1/embeddings": shape.embeddings,
            "/v1/responses": shape.response,
        }

    @property
    def pid(self) -> int | None:
        """It has no process of its own."""
        return None

    async def start(self) -> None:
        """Be ready at once."""
        if self._journal_path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self._journal_path, flags, 0o600)
        self.ready.set()

    async def wait_failed(self) -> None:
        """Wait for ever: it always comes back."""
        await asyncio.get_running_loop().create_future()

    async def models(self) -> list[str]:
        """Return the configured name."""
        return [self._model]

    async def complete(self, endpoint: str, body: bytes) -> EngineResponse:
        """Answer; see `Engine.complete`. Without latency it does so before the first await."""
        if not self.ready.is_set():
            raise EngineDown("the simulated engine is restarting")
        shape = self._shapes.get(endpoint)
        if shape is None:
            return unsupported(endpoint, "The simulated engine")
        hasher = self._digest.copy()
        hasher.update(body)
        digest = hasher.hexdigest()
        if self._journal is not None:
            os.write(self._journal, digest.encode() + b"\n")
        pause = self._latency
        if _MARK_START in body and (mark := _MARK.search(body)):
            if status := mark[3]:
                return _failure(int(status))
            if mark[1] == b"crash":
                self.crash()
                raise EngineCrashed("the simulated engine crashed")
            if mark[4]:
                self._fill_memory(int(mark[4]))
            else:
                pause += float(mark[2] or "inf")
        if pause:
            await self._hold(pause)
        self._tokens_made += self._tokens
        if self._error_rate and self._rng.random() < self._error_rate:
            return _failure(503)
        return EngineResponse(200, shape(body, digest))

    async def progress(self) -> int | None:
        """Return the tokens made so far."""
        return self._tokens_made

    async def canary(self) -> None:
        """Answer unless it hangs; see `Engine.canary`."""
        if not self.ready.is_set():
            raise EngineDown("the simulated engine is restarting")
        if self._hanging:
            await self._hold(float("inf"))

    def crash(self, death: Death = CRASH) -> None:
        """Lose every request it holds and be away for RESTART_SECONDS."""
        self._lose()
        self.on_death(death)
        self.resume()

    async def halt(self, death: Death) -> None:
        """Lose every request it holds, and stay away until `resume`."""
        self._lose()
        self._halted = True
        self.on_death(death)

    def resume(self) -> None:
        """Be back after RESTART_SECONDS."""
        self._halted = False
        if self._restart is not None:
            self._restart.cancel()
        self._restart = asyncio.get_running_loop().call_later(RESTART_SECONDS, self._back)

    def owns(self, _pid: int) -> bool:
        """It has no process of its own."""
        return False

    async def stop(self) -> None:
        """Lose every request it holds, and stay away."""
        self._lose()
        self._halted = True
        if self._restart is not None:
            self._restart.cancel()
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _lose(self) -> None:
        self.ready.clear()
        for held in self._held:
            if not held.done():
                held.set_exception(EngineCrashed("the simulated engine crashed"))

    def _back(self) -> None:
        if not self._halted:
            self.ready.set()

    def _fill_memory(self, fits: int) -> None:
        if self.max_num_seqs > fits:
            self.crash(Death("out_of_memory", f"simulated: more than {fits} do not fit"))
            raise EngineCrashed("the simulated engine ran out of memory")

    async def _hold(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        held: asyncio.Future[None] = loop.create_future()
        timer = None
        if seconds != float("inf"):
            timer = loop.call_later(seconds, _release, held)
        self._held.add(held)
        self._hanging += timer is None
        try:
            await held
        finally:
            self._held.discard(held)
            self._hanging -= timer is None
            if timer is not None:
                timer.cancel()


def _release(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)


def _failure(status: int) -> EngineResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = f"simulated error {status}"
    return EngineResponse(status, error_body(message, code=f"simulated_{status}", kind=kind))


class _Shapes:
    """Bodies of answers, put together as bytes: a benchmark should not measure this."""

    def __init__(self, model: str, tokens: int) -> None:
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
            token, int(time.time()), self._model, token, token,
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
        model = msgspec.Raw(self._model)
        answer = {"object": "list", "data": data, "model": model, "usage": usage}
        return msgspec.json.encode({**answer, "system_fingerprint": "simulated"})

    def _parts(self, body: bytes, digest: str) -> tuple[bytes, int, bytes, bytes, bytes]:
        entered, token = len(body) // _BYTES_PER_TOKEN, digest.encode()
        usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
            entered, self._tokens, entered + self._tokens,
        )  # fmt: skip
        return token, int(time.time()), self._model, token, usage
