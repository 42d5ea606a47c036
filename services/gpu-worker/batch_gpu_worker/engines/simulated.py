"""An engine that computes nothing, in this process: for tests and benchmarks of the rest.

It runs max_num_seqs requests at once, online ones first, as vLLM does.
Deterministic: the same body and seed give the same answer. It says "simulated" in every answer.
Marks anywhere in a body make it misbehave, so that a test can do so from a batch file:

    [[sim:400]] … [[sim:599]]   answer with that status and an error body
    [[sim:sleep=2]]             take 2 seconds (on top of the latency)
    [[sim:hang]]                never answer, nor a canary as long as it holds such a request
    [[sim:crash]]               crash: every request it holds is lost, and it is back a moment later
    [[sim:oom=16]]              the same, for want of memory, while max_num_seqs is above 16

It loads any model and any adapter within simulated_load_seconds, except those whose source has the
mark [[sim:broken]]. Once it was told to load one, it answers for those alone, as vLLM does.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

from batch_gpu_worker.engines.base import (
    EngineLoad,
    EngineResponse,
    EngineStream,
    error_body,
    ignore_death,
    ignore_lost_adapter,
    unsupported,
    whole,
)
from batch_gpu_worker.engines.choice import Choice, Chosen
from batch_gpu_worker.engines.death import Death
from batch_gpu_worker.engines.priority import BATCH_PRIORITY, ONLINE_PRIORITY
from batch_gpu_worker.engines.simulated_answers import Shapes, asked_model
from batch_gpu_worker.engines.simulated_stream import CONTENT_TYPE, events_of, wish_of
from batch_gpu_worker.engines.slots import Slots
from vllm_batch.errors import EngineCrashed, EngineDown, EngineFailed
from vllm_batch.settings import Settings

RESTART_SECONDS = 0.2
_MARK = re.compile(rb"\[\[sim:(crash|hang|sleep=([0-9.]+)|([45]\d\d)|oom=(\d+))\]\]")
_MARK_START = b"[[sim:"
_BROKEN = "[[sim:broken]]"
CRASH = Death("crashed", "simulated")


class SimulatedEngine:
    """See `Engine`."""

    def __init__(self, settings: Settings, *, rng: random.Random | None = None) -> None:
        self.ready = asyncio.Event()
        self.on_death: Callable[[Death], None] = ignore_death
        self.on_adapter_lost: Callable[[str, str], None] = ignore_lost_adapter
        self.max_num_seqs = settings.engine_max_num_seqs
        self._tokens_made = 0
        self._loading = False
        self._hanging = 0
        self._halted = False
        self._choice = Choice(settings)
        self._load_seconds = settings.simulated_load_seconds
        self._latency = settings.simulated_latency_seconds
        self._error_rate = settings.simulated_error_rate
        self._tokens = settings.simulated_output_tokens
        self._rng = rng or random.Random(settings.simulated_seed)  # noqa: S311 - no secret
        self._digest = hashlib.blake2b(digest_size=8, key=str(settings.simulated_seed).encode())
        self._journal_path = settings.simulated_journal
        self._journal: int | None = None
        self._held: set[asyncio.Future[None]] = set()
        self._slots = Slots(lambda: self.max_num_seqs)
        self._restart: asyncio.TimerHandle | None = None
        shape = self._shape = Shapes(settings.model_name, self._tokens)
        self._shapes: dict[str, Callable[[bytes, str], bytes]] = {
            "/v1/chat/completions": shape.chat,
            "/v1/completions": shape.completion,
            "/v1/embeddings": shape.embeddings,
            "/v1/responses": shape.response,
        }

    @property
    def chosen(self) -> Chosen:
        """See `Engine.chosen`."""
        return self._choice.now

    @property
    def pid(self) -> int | None:
        """It has no process of its own."""
        return None

    async def start(self) -> None:
        """Be ready at once."""
        if self._journal_path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self._journal_path, flags, 0o600)
        self._back()

    async def wait_failed(self) -> None:
        """Wait for ever: it always comes back."""
        await asyncio.get_running_loop().create_future()

    async def models(self) -> list[str]:
        """Return the name of its model, and those of the adapters."""
        return self._names()

    def _names(self) -> list[str]:
        return [self._choice.now.base.name, *self._choice.adapters]

    async def complete(self, endpoint: str, body: bytes) -> EngineResponse:
        """Answer; see `Engine.complete`. Without latency it does so before the first await."""
        return await self._respond(endpoint, body, BATCH_PRIORITY)

    async def _respond(self, endpoint: str, body: bytes, priority: int) -> EngineResponse:
        self._check_ready()
        if (refusal := self._refusal(endpoint, body)) is not None:
            return refusal
        digest = self._digest_of(body)
        misdeed = self._misdeed(body)
        if isinstance(misdeed, EngineResponse):
            return misdeed
        if pause := self._latency + misdeed:
            async with self._slots.taken(priority):
                await self._hold(pause)
        self._tokens_made += self._tokens
        if self._error_rate and self._rng.random() < self._error_rate:
            return _failure(503)
        return EngineResponse(200, self._shapes[endpoint](body, digest))

    def _check_ready(self) -> None:
        if not self.ready.is_set():
            raise EngineDown("the simulated engine is restarting")

    def _refusal(self, endpoint: str, body: bytes) -> EngineResponse | None:
        if endpoint not in self._shapes:
            return unsupported(endpoint, "The simulated engine")
        if self._shape.strict and (asked := asked_model(body)) not in self._names():
            message = f"The model `{asked}` does not exist."
            return EngineResponse(404, error_body(message, code="model_not_found"))
        return None

    def _digest_of(self, body: bytes) -> str:
        """Return what the answer depends on, and put it into the journal."""
        hasher = self._digest.copy()
        hasher.update(body)
        digest = hasher.hexdigest()
        if self._journal is not None:
            os.write(self._journal, digest.encode() + b"\n")
        return digest

    def _misdeed(self, body: bytes) -> EngineResponse | float:
        """Do what a mark in ``body`` asks for: fail, or take so many seconds more.

        Raises:
            EngineCrashed: it asks for a crash.
        """
        if _MARK_START not in body or (mark := _MARK.search(body)) is None:
            return 0.0
        if status := mark[3]:
            return _failure(int(status))
        if mark[1] == b"crash":
            self.crash()
            raise _crashed()
        if mark[4]:
            self._fill_memory(int(mark[4]))
            return 0.0
        return float(mark[2] or "inf")

    @asynccontextmanager
    async def stream(self, endpoint: str, body: bytes) -> AsyncIterator[EngineStream]:
        """Answer, before whatever `complete` was given; see `Engine.stream`. Where the body asks
        for events, every token takes its part of the latency."""
        wish = wish_of(body)
        if not wish.stream or endpoint == "/v1/embeddings":
            yield whole(await self._respond(endpoint, body, ONLINE_PRIORITY))
            return
        self._check_ready()
        if (refusal := self._refusal(endpoint, body)) is not None:
            yield whole(refusal)
            return
        misdeed = self._misdeed(body)
        if isinstance(misdeed, EngineResponse):
            yield whole(misdeed)
            return
        answer = self._shapes[endpoint](body, self._digest_of(body))
        events = events_of(endpoint, answer, self._tokens, wish)
        async with self._slots.taken(ONLINE_PRIORITY):
            pieces = self._tell(events, (self._latency + misdeed) / len(events))
            try:
                yield EngineStream(200, CONTENT_TYPE, pieces)
            finally:
                await pieces.aclose()

    async def _tell(self, events: list[bytes], pause: float) -> AsyncGenerator[bytes, None]:
        for event in events:
            if pause:
                await self._hold(pause)
            self._tokens_made += 1
            yield event

    async def load(self) -> EngineLoad:
        """Return who has a place and who waits for one; it has no KV cache."""
        return EngineLoad(self._slots.in_use, self._slots.waiting, 0.0)

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
        """Be back after RESTART_SECONDS, or when the chosen model is loaded."""
        self._halted = False
        if self._restart is not None:
            self._restart.cancel()
        seconds = self._load_seconds if self._loading else RESTART_SECONDS
        self._restart = asyncio.get_running_loop().call_later(seconds, self._back)

    def choose(self, chosen: Chosen) -> None:
        """Load another model at the next start; see `Engine.choose`."""
        self._choice.choose(chosen)
        self._shape.strict = self._loading = True

    async def settled(self) -> None:
        """Wait until the chosen model runs; see `Engine.settled`."""
        await self._choice.settled()

    async def load_adapter(self, name: str, folder: str) -> None:
        """Answer for ``name``, too; see `Engine.load_adapter`."""
        await asyncio.sleep(self._load_seconds)
        if _BROKEN in folder:
            raise EngineFailed(f"simulated: {name} cannot be loaded")
        self._choice.adapters[name] = folder
        self._shape.strict = True

    async def unload_adapter(self, name: str) -> None:
        """Answer for ``name`` no longer."""
        self._choice.adapters.pop(name, None)

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
        self._slots.lose(_crashed)
        for held in self._held:
            if not held.done():
                held.set_exception(_crashed())

    def _back(self) -> None:
        if self._halted:
            return
        self._loading = False
        base = self._choice.now.base
        if _BROKEN in (base.source or "") and self._choice.failed("simulated: it is broken"):
            self._loading = True
            self.resume()  # with the one before
            return
        self._choice.came_up()
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


def _crashed() -> EngineCrashed:
    return EngineCrashed("the simulated engine crashed")


def _release(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)


def _failure(status: int) -> EngineResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = f"simulated error {status}"
    return EngineResponse(status, error_body(message, code=f"simulated_{status}", kind=kind))
