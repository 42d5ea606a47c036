"""What the worker asks of an engine, whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

import msgspec

from batch_gpu_worker.engines.choice import Chosen
from batch_gpu_worker.engines.death import Death

ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}
)
"""Batch endpoints that an engine may have; which of them it has depends on its model."""


class EngineResponse(msgspec.Struct, frozen=True, gc=False):
    """An HTTP status and a body as the engine gave it; ``request_id`` if it named one,
    ``retry_seconds`` if it asks for a pause before the next try."""

    status: int
    body: bytes
    request_id: str | None = None
    retry_seconds: float | None = None


class EngineStream(NamedTuple):
    """An answer as it comes in: ``pieces`` are the body's bytes, cut where the engine cut them;
    ``retry_seconds`` if it asks for a pause before the next try."""

    status: int
    content_type: str
    pieces: AsyncGenerator[bytes, None]
    retry_seconds: float | None = None


class EngineLoad(NamedTuple):
    """Requests that run and that wait in the engine; ``kv_cache_usage``: the share in use."""

    running: int
    waiting: int
    kv_cache_usage: float


class Engine(Protocol):
    """An inference engine that answers OpenAI-shaped requests.

    ``ready`` is set while it takes requests; it is cleared while it restarts. ``on_death`` is told
    of each end that it gets over, before it is ready again, and may change ``max_num_seqs`` then:
    how many requests the next one runs at once. ``on_adapter_lost`` is told the name of an adapter
    that it could not load again, and why, also before it is ready.
    """

    ready: asyncio.Event
    on_death: Callable[[Death], None]
    on_adapter_lost: Callable[[str, str], None]
    max_num_seqs: int

    @property
    def chosen(self) -> Chosen | None:
        """What it runs or is about to; None where that is not ours to choose."""
        ...

    @property
    def pid(self) -> int | None:
        """Process id of the engine's server, None where it has none (yet) or is elsewhere."""
        ...

    async def start(self) -> None:
        """Begin to start, and from then on keep it running; `ready` tells when it is."""
        ...

    async def wait_failed(self) -> None:
        """Wait until the engine is given up, if ever.

        Raises:
            EngineFailed: it will not run again; the message has its last words.
        """
        ...

    async def models(self) -> list[str]:
        """Return the names of the models that requests may ask for.

        Raises:
            EngineUnavailable: it does not answer now.
        """
        ...

    async def complete(self, endpoint: str, body: bytes) -> EngineResponse:
        """Have ``body`` answered; cancelling the call aborts the request in the engine.

        Raises:
            EngineDown: it never got the request.
            EngineCrashed: it died while it held the request.
            EngineUnavailable: it gave no answer; trying again may help.
        """
        ...

    def stream(self, endpoint: str, body: bytes) -> AbstractAsyncContextManager[EngineStream]:
        """Have ``body`` answered ahead of everything that `complete` was given; leaving the context
        aborts the request in the engine. What ``pieces`` raises has to leave the context, too.

        Raises:
            EngineDown: it never got the request.
            EngineCrashed: it died while it held the request.
            EngineUnavailable: the answer did not come, or broke off.
        """
        ...

    async def load(self) -> EngineLoad | None:
        """Return what the engine says of its load; None where it does not say.

        Raises:
            EngineUnavailable: it does not answer now.
        """
        ...

    async def progress(self) -> int | None:
        """Return a number that grows with every token; None where the engine does not say.

        Raises:
            EngineUnavailable: it does not answer now.
        """
        ...

    async def canary(self) -> None:
        """Have the smallest possible request answered, whatever else waits.

        Raises:
            EngineUnavailable: it gave no answer.
        """
        ...

    async def halt(self, death: Death) -> None:
        """End what runs of it for the reason given; nothing is left of it on return, and it stays
        down until `resume`. An engine that is not ours to end stays as it is."""
        ...

    def resume(self) -> None:
        """Let it start again after `halt`."""
        ...

    def choose(self, chosen: Chosen) -> None:
        """Have it start with another model, between `halt` and `resume`, without adapters."""
        ...

    async def settled(self) -> None:
        """Wait until it runs what was chosen.

        Raises:
            EngineFailed: it cannot, in its last words; it starts again with what it ran before.
        """
        ...

    async def load_adapter(self, name: str, folder: str) -> None:
        """Answer requests for ``name`` with its model and this adapter; engines that start again
        load it again, before they are ready.

        Raises:
            EngineFailed: it cannot be loaded; the message says why.
            EngineUnavailable: it does not answer now.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; one that it does not have is no error.

        Raises:
            EngineUnavailable: it does not answer now.
        """
        ...

    def owns(self, pid: int) -> bool:
        """Tell whether the live process ``pid`` is, or was left behind by, this engine."""
        ...

    async def stop(self) -> None:
        """End it, whatever it is doing, and wait until nothing of it is left."""
        ...


def error_body(message: str, *, code: str, kind: str = "invalid_request_error") -> bytes:
    """Return an error in the shape that OpenAI's API gives it."""
    return msgspec.json.encode(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    )


def unsupported(endpoint: str, by: str) -> EngineResponse:
    """Return the answer to a request for an endpoint that the engine does not have."""
    message = f"{by} does not serve {endpoint}."
    return EngineResponse(404, error_body(message, code="unsupported_endpoint"))


def whole(answer: EngineResponse) -> EngineStream:
    """Return an answer that is there already as one that comes in."""
    return EngineStream(answer.status, "application/json", _once(answer.body), answer.retry_seconds)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def ignore_death(_death: Death) -> None:
    """What ``on_death`` is before somebody wants to know."""


def ignore_lost_adapter(_name: str, _reason: str) -> None:
    """What ``on_adapter_lost`` is before somebody wants to know."""
