"""One request from its line to its result line: tries, pauses, time limit, what is a failure."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable

import msgspec
from prometheus_client import CollectorRegistry

from batch_gpu_worker.answers import (
    NotAnAnswer,
    asking_for,
    error_of,
    fit_for_batch,
    usage_of,
)
from batch_gpu_worker.effort import EffortMeter
from batch_gpu_worker.engines.base import Engine, EngineResponse
from batch_gpu_worker.holdings import HeldChunk, Request
from batch_gpu_worker.poison import RequestKey
from batch_gpu_worker.ward import Ward
from vllm_batch.batch_file import error_line, parse_request, response_line
from vllm_batch.errors import EngineCrashed, EngineDown, EngineUnavailable
from vllm_batch.events import Usage
from vllm_batch.metrics.worker import WorkerMetrics
from vllm_batch.segments import Result
from vllm_batch.settings import Settings

DOWN_PAUSE_SECONDS = 0.05
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_NOTHING_USED = Usage()
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')


class RequestTimeout(Exception):
    """The engine took longer than a request may."""


class TimeLimit:
    """Ends engine calls that take too long.

    All calls have the same limit, so the oldest is always the first in the dictionary, and one look
    now and then does what a timer per request would cost a tenth of the worker's time for.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self.look_every_seconds = min(1.0, seconds / 10)
        self._seconds = seconds
        self._monotonic = monotonic
        self._running: dict[asyncio.Task[None], float] = {}
        self._timed_out: set[asyncio.Task[None]] = set()

    @property
    def calls(self) -> int:
        """How many calls the engine holds."""
        return len(self._running)

    async def call(
        self, task: asyncio.Task[None], engine: Engine, endpoint: str, body: bytes
    ) -> EngineResponse:
        """Return the engine's answer to the request that ``task`` runs.

        Raises:
            RequestTimeout: it did not come in time.
            EngineUnavailable: see `Engine.complete`.
        """
        self._running[task] = self._monotonic()
        try:
            return await engine.complete(endpoint, body)
        except asyncio.CancelledError:
            if task not in self._timed_out:
                raise
            task.uncancel()
            raise RequestTimeout from None
        finally:
            del self._running[task]
            self._timed_out.discard(task)

    def look(self) -> None:
        """End the calls that have run out of time."""
        limit = self._monotonic() - self._seconds
        for task, began in self._running.items():
            if began > limit:
                return
            if task not in self._timed_out:
                self._timed_out.add(task)
                task.cancel()


class RequestRunner:
    """Has requests answered by an engine; every request ends as exactly one result line."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        time_limit: TimeLimit,
        rng: random.Random,
        ward: Ward,
        *,
        effort: EffortMeter,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self.engine_answers = 0
        self._effort = effort
        self._engine = engine
        self._ward = ward
        self._settings = settings
        self._time_limit = time_limit
        self._rng = rng
        self._errors = (metrics or WorkerMetrics(CollectorRegistry())).request_errors

    @property
    def in_engine(self) -> int:
        """How many requests the engine holds."""
        return self._time_limit.calls

    def left(self, request: Request) -> None:
        """The request has its result, or nobody wants it any more."""
        self._ward.left(_key(request))

    async def run(self, request: Request, task: asyncio.Task[None]) -> tuple[Result, Usage]:
        """Return the request's result and what it used (nothing, where it failed)."""
        chunk, index, line = request.chunk, request.index, request.line
        try:
            parsed = parse_request(line)
            body = fit_for_batch(bytes(parsed.body))
            if chunk.renamed is not None:
                body = asking_for(chunk.renamed, body)
        except (msgspec.DecodeError, RecursionError) as error:
            return self._failed(request, _custom_id(line), "invalid_json_line", str(error))
        custom_id = parsed.custom_id
        try:
            answer = await self._answer(_key(request), chunk, body, task)
            used = usage_of(answer.body) if 200 <= answer.status < 300 else None
        except RequestTimeout:
            seconds = self._settings.request_timeout_seconds
            message = f"The request took longer than {seconds:g} seconds."
            return self._failed(request, custom_id, "request_timeout", message)
        except EngineCrashed:
            message = "The engine crashed or froze each time it worked on this request, alone too."
            return self._failed(request, custom_id, "engine_crash", message)
        except (EngineUnavailable, NotAnAnswer) as error:
            message = f"The engine gave no answer: {error}"
            return self._failed(request, custom_id, "engine_error", message)
        written = response_line(
            chunk.job_id,
            chunk.number,
            index,
            custom_id=custom_id,
            status_code=answer.status,
            request_id=answer.request_id or f"req_{chunk.job_id[6:]}-{chunk.number:x}-{index:x}",
            body=answer.body if used is not None else error_of(answer.status, answer.body),
        )
        if used is None:
            self._errors.labels(f"http_{answer.status}").inc()
            return Result(index, True, written), _NOTHING_USED
        return Result(index, False, written), used

    async def _answer(
        self, key: RequestKey, chunk: HeldChunk, body: bytes, task: asyncio.Task[None]
    ) -> EngineResponse:
        """Return an answer that trying again would not change, or the last one there was.

        Raises:
            RequestTimeout: the engine took too long.
            EngineCrashed: this request crashes it.
            EngineUnavailable: there was no answer, however often it was tried.
        """
        tries = 0
        while True:
            if self._ward.closed or not self._engine.ready.is_set():
                await self._ward.admit(key)
            outcome: EngineResponse | EngineUnavailable
            try:
                outcome = await self._ask(chunk, body, task)
                self.engine_answers += 1
            except EngineDown:
                await asyncio.sleep(DOWN_PAUSE_SECONDS)  # it never had the request: not a try
                continue
            except EngineCrashed:
                self._ward.fell(key)
                continue
            except EngineUnavailable as error:
                outcome = error
            if isinstance(outcome, EngineResponse) and outcome.status not in _TRANSIENT:
                return outcome
            tries += 1
            if tries == self._settings.request_attempts_max:
                if isinstance(outcome, EngineUnavailable):
                    raise outcome
                return outcome
            await asyncio.sleep(self._pause(tries, outcome))

    async def _ask(self, chunk: HeldChunk, body: bytes, task: asyncio.Task[None]) -> EngineResponse:
        """Ask the engine once; what that takes is the chunk's, whatever comes of it."""
        mark = self._effort.enter()
        try:
            return await self._time_limit.call(task, self._engine, chunk.endpoint, body)
        finally:
            chunk.effort += self._effort.leave(mark)

    def _pause(self, tries: int, outcome: EngineResponse | EngineUnavailable) -> float:
        """Return how long to wait: our own pause, on top of the one that the engine asks for, so
        that all who were sent away at once do not come back at once."""
        longest: float = min(
            self._settings.retry_backoff_seconds * 2 ** (tries - 1),
            self._settings.retry_backoff_seconds_max,
        )
        own = longest * self._rng.uniform(0.5, 1.0)
        asked = outcome.retry_seconds if isinstance(outcome, EngineResponse) else None
        return own + min(asked or 0.0, self._settings.retry_after_seconds_max)

    def _failed(
        self, request: Request, custom_id: str, code: str, message: str
    ) -> tuple[Result, Usage]:
        self._errors.labels(code).inc()
        chunk, index = request.chunk, request.index
        line = error_line(
            chunk.job_id, chunk.number, index, custom_id=custom_id, code=code, message=message
        )
        return Result(index, True, line), _NOTHING_USED


def _key(request: Request) -> RequestKey:
    chunk = request.chunk
    return chunk.job_id, chunk.number, request.index


def _custom_id(line: bytes) -> str:
    """Return the custom_id of a line that cannot be decoded, as far as one can be made out."""
    try:
        return msgspec.json.decode(found[1], type=str) if (found := _CUSTOM_ID.search(line)) else ""
    except msgspec.DecodeError:
        return ""
