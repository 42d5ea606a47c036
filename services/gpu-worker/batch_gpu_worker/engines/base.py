"""What the worker asks of an engine, whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from batch_gpu_worker.engines.death import Death

ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}
)
"""Batch endpoints that an engine may have; which of them it has depends on its model."""


class EngineResponse(msgspec.Struct, frozen=True, gc=False):
    """An HTTP status and a body as the engine gave it; ``request_id`` if it named one."""

    status: int
    body: bytes
    request_id: str | None = None


class Engine(Protocol):
    """An inference engine that answers OpenAI-shaped requests.

    ``ready`` is set while it takes requests; it is cleared while it restarts. ``on_death`` is told
    of each end that it gets over, before it is ready again, and may change ``max_num_seqs`` then:
    how many requests the next one runs at once.
    """

    ready: asyncio.Event
    on_death: Callable[[Death], None]
    max_num_seqs: int

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


def ignore_death(_death: Death) -> None:
    """What ``on_death`` is before somebody wants to know."""
