"""Takes online requests from NATS and has them answered by the engine, ahead of batch work.

Takes as many as inference_in_flight_factor allows and refuses the rest at once, so that the gateway
can try another worker. Owns nothing that lasts: a request lives as long as its gateway asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from prometheus_client import CollectorRegistry

from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.online_answer import OnlineAnswer, Outcome
from batch_gpu_worker.online_load import OnlineLoad
from vllm_batch import ids, tasks, tracing
from vllm_batch.ids import ModelKey, WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.metrics.worker import WorkerMetrics
from vllm_batch.online import (
    WORKERS,
    Ask,
    Cancel,
    Credit,
    Failed,
    Holding,
    RefusalReason,
    Refused,
    Taken,
    ToGateway,
    decode_forgotten,
    decode_to_worker,
    encode,
)
from vllm_batch.settings import Settings
from vllm_batch.tracing import SpanKind

log = structlog.get_logger(__name__)

CRASHES_MAX = 2
"""A request that was there at so many crashes is taken for their cause."""
CRASHERS_KEPT = 256
LOOK_SECONDS = 0.02
STOPPED = "The worker was stopped before the answer was complete; please try again."


class _Running(NamedTuple):
    answer: OnlineAnswer
    task: asyncio.Task[None]


class _Crashers:
    """Bodies by how many crashes they were in the engine at; the oldest are forgotten."""

    def __init__(self) -> None:
        self._crashes: OrderedDict[bytes, int] = OrderedDict()

    def note(self, body: bytes) -> None:
        """``body`` was in the engine when it crashed."""
        digest = _digest(body)
        self._crashes[digest] = self._crashes.pop(digest, 0) + 1
        if len(self._crashes) > CRASHERS_KEPT:
            self._crashes.popitem(last=False)

    def forget(self, body: bytes) -> None:
        """``body`` was answered."""
        if self._crashes:
            self._crashes.pop(_digest(body), None)

    def __contains__(self, body: bytes) -> bool:
        return bool(self._crashes) and self._crashes.get(_digest(body), 0) >= CRASHES_MAX


class OnlineDesk:
    """``withheld`` tells whether the engine may just now not get online requests.

    An online request beside suspects of a crash would cast the blame on the wrong one.
    """

    def __init__(
        self,
        client: Client,
        engine: Engine,
        settings: Settings,
        *,
        worker_id: WorkerId,
        load: OnlineLoad,
        withheld: Callable[[], bool],
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._load = load
        self._client = client
        self._engine = engine
        self._worker_id = worker_id
        self._withheld = withheld
        self._factor = settings.inference_in_flight_factor
        self._check_seconds = settings.inference_check_seconds
        self._models: frozenset[str] = frozenset()
        self._subscriptions: dict[ModelKey, Subscription] = {}
        self._running: dict[str, _Running] = {}
        self._crashers = _Crashers()
        self._outcomes = (metrics or WorkerMetrics(CollectorRegistry())).online

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take what gateways say while the context lasts; at its end whatever runs is aborted."""
        inbox = await self._client.subscribe(
            subjects.online_worker(self._worker_id), cb=self._heard
        )
        try:
            yield
        finally:
            await self.serve([])
            await self.abort()
            await self._leave(inbox)

    async def serve(self, models: Sequence[str]) -> None:
        """Take requests for exactly these models from now on; what runs goes on."""
        self._models = frozenset(models)
        wanted = {ids.model_key(model) for model in models}
        for key in wanted - self._subscriptions.keys():
            self._subscriptions[key] = await self._client.subscribe(
                subjects.inference(key), queue=WORKERS, cb=self._heard
            )
        for key in self._subscriptions.keys() - wanted:
            await self._leave(self._subscriptions.pop(key))

    async def finish(self, *, until: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """Take nothing more; let what runs finish until then (the loop's time), abort the rest."""
        await self.serve([])
        loop = asyncio.get_running_loop()
        while self._running and loop.time() < until and not hurried():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        await self.abort()

    async def abort(self) -> None:
        """End what runs; gateways are told that the worker is to blame."""
        for running in self._running.values():
            running.answer.farewell = STOPPED
        await tasks.end(*(running.task for running in self._running.values()))

    async def run(self) -> None:
        """Tell gateways for ever what runs for them, and abort what nobody waits for any more."""
        while True:
            await asyncio.sleep(self._check_seconds)
            by_gateway: dict[str, list[str]] = defaultdict(list)
            for request_id, running in self._running.items():
                by_gateway[running.answer.ask.gateway].append(request_id)
            await asyncio.gather(*(self._check(*each) for each in by_gateway.items()))

    async def _check(self, gateway: str, request_ids: list[str]) -> None:
        subject = subjects.online_gateway(gateway)
        holding = encode(Holding(self._worker_id, request_ids))
        try:
            answer = await self._client.request(subject, holding, self._check_seconds)
        except nats.errors.NoRespondersError:
            log.warning("a gateway is gone", gateway=gateway, in_flight=len(request_ids))
            forgotten = request_ids
        except (nats.errors.Error, TimeoutError):
            return  # it may be busy, or NATS away: the next check tells
        else:
            forgotten = decode_forgotten(answer.data).request_ids
        for request_id in forgotten:
            self._cancel(request_id)

    async def _heard(self, message: Msg) -> None:
        try:
            said = decode_to_worker(message.data)
        except msgspec.DecodeError as error:
            log.warning("not understood: a gateway of another release?", error=str(error))
            return
        match said:
            case Ask():
                with tracing.continued(message.headers):
                    await self._hear(said)
            case Credit(request_id=request_id, bytes=count):
                if (running := self._running.get(request_id)) is not None:
                    running.answer.window.grow(count)
            case Cancel(request_id=request_id):
                self._cancel(request_id)

    async def _hear(self, ask: Ask) -> None:
        if (reason := self._refusal(ask)) is not None:
            await self._say(ask, Refused(ask.request_id, self._worker_id, reason))
            return
        if ask.body in self._crashers:
            message = "The engine crashed each time it worked on this request."
            await self._say(ask, Failed(ask.request_id, "engine_crash", message))
            return
        answer = OnlineAnswer(ask, self._client, self._engine, self._worker_id)
        task = asyncio.create_task(self._answer(answer))
        self._running[ask.request_id] = _Running(answer, task)
        self._load.in_flight = len(self._running)
        await self._say(ask, Taken(ask.request_id, self._worker_id))

    def _refusal(self, ask: Ask) -> RefusalReason | None:
        if not self._models:
            return "draining"
        if ask.model not in self._models:
            return "not_here"
        if not self._engine.ready.is_set() or self._withheld():
            return "not_ready"
        if len(self._running) >= max(1, int(self._engine.max_num_seqs * self._factor)):
            return "busy"
        return None

    async def _answer(self, answer: OnlineAnswer) -> None:
        outcome: Outcome = "aborted"
        try:
            with tracing.span("online request", SpanKind.CONSUMER) as span:
                span.set_attribute("gen_ai.request.model", answer.ask.model)
                outcome = await answer.run()
                span.set_attribute("vllm_batch.outcome", outcome)
        finally:
            self._outcomes.labels(outcome).inc()
            del self._running[answer.ask.request_id]
            self._load.in_flight = len(self._running)
        if outcome == "engine_crash":
            self._crashers.note(answer.ask.body)
        elif outcome == "answered":
            self._load.answered += 1
            self._crashers.forget(answer.ask.body)

    def _cancel(self, request_id: str) -> None:
        if (running := self._running.get(request_id)) is not None:
            running.task.cancel()

    async def _say(self, ask: Ask, message: ToGateway) -> None:
        with contextlib.suppress(nats.errors.Error):  # the gateway asks another one then
            await self._client.publish(subjects.online_gateway(ask.gateway), encode(message))

    async def _leave(self, subscription: Subscription) -> None:
        """Take what has come in already, and nothing more."""
        if not self._client.is_closed:
            with contextlib.suppress(nats.errors.Error):
                await subscription.drain()  # type: ignore[no-untyped-call] # nats-py 2.16


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
