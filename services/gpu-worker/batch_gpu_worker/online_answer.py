"""One online request in the worker: from the gateway's `Ask` to the last `Part` of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import nats.errors
import structlog
from nats.aio.client import Client

from batch_gpu_worker.engines.base import Engine, EngineStream
from vllm_batch import tracing
from vllm_batch.errors import EngineCrashed, EngineDown, EngineUnavailable
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.online import (
    PART_BYTES_MAX,
    PART_COST_BYTES,
    Ask,
    Failed,
    Part,
    Refused,
    ToGateway,
    encode,
)
from vllm_batch.tracing import SpanKind

log = structlog.get_logger(__name__)

Outcome = Literal["answered", "aborted", "refused", "timeout", "engine_crash", "failed"]


class Window:
    """How much may be sent before the gateway says that its client has read on."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self._grown = asyncio.Event()

    def grow(self, by_bytes: int) -> None:
        """The client has taken so much more."""
        self._left += by_bytes
        self._grown.set()

    async def take(self, wanted_bytes: int) -> None:
        """Wait until anything may be sent; the last part may go beyond the window's end."""
        while self._left <= 0:
            self._grown.clear()
            await self._grown.wait()
        self._left -= wanted_bytes


class OnlineAnswer:
    """Has one request answered and sends the answer on; cancelling `run` aborts it in the engine.

    ``farewell``: what the gateway is told when the request is aborted; empty: it asked for that, or
    is gone.
    """

    def __init__(self, ask: Ask, client: Client, engine: Engine, worker_id: WorkerId) -> None:
        self.ask = ask
        self.window = Window(ask.window_bytes)
        self.farewell = ""
        self._client = client
        self._engine = engine
        self._worker_id = worker_id
        self._sent = 0

    async def run(self) -> Outcome:
        """Answer, and return how that ended. Everything that goes wrong is told to the gateway."""
        try:
            return await self._run()
        except asyncio.CancelledError:
            if self.farewell:
                await self._say(Failed(self.ask.request_id, "worker_stopped", self.farewell))
            raise
        except nats.errors.Error as error:
            # The gateway finds out by itself: a part is missing, or nothing more comes.
            log.warning("an answer could not be sent on", error=repr(error))
            return "failed"

    async def _run(self) -> Outcome:
        ask = self.ask
        try:
            async with asyncio.timeout(ask.timeout_seconds):
                await self._answer()
        except TimeoutError:
            message = f"The answer took longer than {ask.timeout_seconds:g} seconds."
            await self._say(Failed(ask.request_id, "timeout", message))
            return "timeout"
        except EngineDown:
            await self._say(Refused(ask.request_id, self._worker_id, "not_ready"))
            return "refused"
        except EngineCrashed as error:
            message = "The engine crashed while it worked on this request."
            await self._say(Failed(ask.request_id, error.code, message))
            return "engine_crash"
        except EngineUnavailable as error:
            message = f"The engine gave no (whole) answer: {error}"
            await self._say(Failed(ask.request_id, error.code, message))
            return "failed"
        return "answered"

    async def _answer(self) -> None:
        ask = self.ask
        async with self._in_engine(ask) as answer:
            retry_seconds = answer.retry_seconds or 0.0
            head = (answer.status, answer.content_type, retry_seconds)
            async for piece in answer.pieces:
                for start in range(0, len(piece), PART_BYTES_MAX):
                    data = piece[start : start + PART_BYTES_MAX]
                    await self.window.take(len(data) + PART_COST_BYTES)
                    await self._part(data, head)
        await self._part(b"", head, last=True)

    @asynccontextmanager
    async def _in_engine(self, ask: Ask) -> AsyncIterator[EngineStream]:
        with tracing.span("engine", SpanKind.CLIENT, {"gen_ai.request.model": ask.model}) as span:
            async with self._engine.stream(ask.endpoint, ask.body) as answer:
                span.set_attribute("http.response.status_code", answer.status)
                yield answer

    async def _part(self, data: bytes, head: tuple[int, str, float], *, last: bool = False) -> None:
        head = head if not self._sent else (0, "", 0.0)
        part = Part(self.ask.request_id, self._sent, data, last, *head)
        self._sent += 1
        await self._say(part)

    async def _say(self, message: ToGateway) -> None:
        await self._client.publish(subjects.online_gateway(self.ask.gateway), encode(message))
