"""Online requests on their way to workers and back: one inbox, many calls.

Owns the calls under way and nothing that lasts. Another worker is asked only while no engine can
have had the request: refused, or not taken in time. Once a worker has taken it, it is never asked
again, for it may be what the worker died of.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from batch_gateway.api.inference_errors import Broken, nobody_there, not_now, overloaded
from batch_gateway.api.model_names import ModelNames
from vllm_batch import ids, tasks, tracing
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.online import (
    PART_COST_BYTES,
    Ask,
    Cancel,
    Credit,
    Failed,
    Forgotten,
    Holding,
    Part,
    RefusalReason,
    Refused,
    Taken,
    ToWorker,
    decode_to_gateway,
    encode,
)
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

WORKERS_ASKED_MAX = 4
MISSING_MAX = 2
"""A worker that leaves a call out of so many lists in a row does not have it any more."""


class _Nobody:
    """NATS says that nobody takes the request."""


_Said = Taken | Refused | Part | Failed | _Nobody


class OnlineAnswer(NamedTuple):
    """An answer that has begun; closing ``pieces`` aborts what is left of it. ``retry_seconds``:
    the pause that the engine asks for, 0: none."""

    status: int
    content_type: str
    pieces: AsyncGenerator[bytes, None]
    retry_seconds: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """What of the engine's headers goes on to the client. One that is told to come later is
        also told when."""
        kept = {"content-type": self.content_type}
        if self.retry_seconds or self.status == 429:
            kept["retry-after"] = str(max(1, math.ceil(self.retry_seconds)))
        return kept


class OnlineWork(NamedTuple):
    """What online requests need beside the rest."""

    switchboard: Switchboard
    names: ModelNames


class _Call:
    """One `Ask` and what is said about it."""

    def __init__(self, ask: Ask, deadline: float) -> None:
        self.ask = ask
        self.deadline = deadline
        self.worker_id: WorkerId | None = None
        self.heard_at = 0.0
        self.missing = 0
        self.over = False
        self._parts = 0
        self._said: asyncio.Queue[_Said] = asyncio.Queue()

    def hear(self, said: _Said) -> None:
        """Take in what was said; a part that was lost on the way breaks the answer."""
        if isinstance(said, Part):
            if said.number != self._parts:
                self.fail("answer_broken", "A part of the answer was lost on its way.")
                return
            self._parts += 1
        if not isinstance(said, Taken):
            self.over = self.over or not isinstance(said, Part) or said.last
        self._said.put_nowait(said)

    def fail(self, code: str, message: str) -> None:
        """Let the call end with an error."""
        self._said.put_nowait(Failed(self.ask.request_id, code, message))

    async def next(self, until: float) -> _Said:
        """Return what is said next.

        Raises:
            TimeoutError: nothing, until then (the loop's time).
        """
        async with asyncio.timeout_at(until):
            return await self._said.get()


class Switchboard:
    """Asks workers."""

    def __init__(self, client: Client, names: ModelNames, settings: Settings) -> None:
        self._client = client
        self._names = names
        self._settings = settings
        self._gateway = ids.new("gateway_")
        self._calls: dict[str, _Call] = {}

    @property
    def in_flight(self) -> int:
        """How many requests workers have, or are being offered."""
        return len(self._calls)

    @property
    def body_bytes_max(self) -> int:
        """The largest body that NATS carries; known once connected."""
        return self._client.max_payload

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear what workers say while the context lasts."""
        inbox = await self._client.subscribe(subjects.online_gateway(self._gateway), cb=self._heard)
        nobody = await self._client.subscribe(
            subjects.online_reply(self._gateway, "*"), cb=self._heard_nobody
        )
        watching = asyncio.create_task(self._watch(), name="watch online requests")
        try:
            yield
        finally:
            await tasks.end(watching)
            for subscription in (inbox, nobody):
                if not self._client.is_closed:
                    await subscription.unsubscribe()

    async def ask(
        self, model: str, endpoint: str, body: bytes, timeout_seconds: float
    ) -> OnlineAnswer:
        """Return the beginning of a worker's answer.

        Raises:
            HttpRefusal: 429 all workers are busy, 503 nobody serves the model or can just now.
            Broken: the worker had it and gave no answer.
        """
        if len(self._calls) >= self._settings.inference_in_flight_max:
            raise overloaded()
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        subject = subjects.inference(ids.model_key(model))
        asked: set[WorkerId] = set()
        reasons: set[RefusalReason] = set()
        for _ in range(WORKERS_ASKED_MAX):
            timeout = deadline - asyncio.get_running_loop().time()
            request = Ask(
                ids.new("online_"), self._gateway, model, endpoint, timeout,
                self._settings.inference_window_bytes, body,
            )  # fmt: skip
            call = _Call(request, deadline)
            said = await self._first(call, subject)
            if isinstance(said, Part):
                pieces = self._pieces(call, said)
                return OnlineAnswer(said.status, said.content_type, pieces, said.retry_seconds)
            if isinstance(said, Refused):
                reasons.add(said.reason)
                asked.add(said.worker_id)
            untried = [it for it in self._names.serving(model) if it not in asked]
            if not untried or asyncio.get_running_loop().time() >= deadline:
                break
            asked.add(untried[0])
            subject = subjects.online_worker(untried[0])
        if "busy" in reasons:
            raise overloaded()
        if asyncio.get_running_loop().time() >= deadline:
            raise Broken("timeout", "No worker took the request in the time that it allows.")
        if reasons & {"not_ready", "draining"}:
            raise not_now(model, reasons)
        raise nobody_there(model, self._names.served())

    async def _first(self, call: _Call, subject: str) -> Part | Refused | None:
        """Return the first part, a refusal, or None where nobody has taken the request.

        Raises:
            Broken: a worker has taken it, and there is no answer.
        """
        request_id = call.ask.request_id
        self._calls[request_id] = call
        kept = False
        loop = asyncio.get_running_loop()
        try:
            reply = subjects.online_reply(self._gateway, request_id)
            with contextlib.suppress(nats.errors.Error):  # then nobody takes it, either
                headers = tracing.headers()
                await self._client.publish(subject, encode(call.ask), reply, headers or None)
            until = min(call.deadline, loop.time() + self._settings.inference_accept_seconds)
            try:
                said = await call.next(until)
            except TimeoutError:
                return None
            if isinstance(said, Taken):
                said = await self._until_deadline(call)
            match said:
                case Part():
                    kept = True
                    return said
                case Refused():
                    return said
                case Failed(code=code, message=message):
                    raise Broken(code, message)
            return None
        finally:
            if not kept:
                await self._end(call)

    async def _until_deadline(self, call: _Call) -> _Said:
        try:
            return await call.next(call.deadline)
        except TimeoutError:
            raise Broken("timeout", "The answer took longer than the request allows.") from None

    async def _pieces(self, call: _Call, part: Part) -> AsyncGenerator[bytes, None]:
        """Yield the answer; the worker may send more as soon as a piece is taken.

        Raises:
            Broken: it will not be whole.
        """
        owed = 0
        try:
            while True:
                if part.data:
                    yield part.data
                if part.last:
                    return
                owed += len(part.data) + PART_COST_BYTES
                if owed >= call.ask.window_bytes // 4:
                    await self._say(call, Credit(call.ask.request_id, owed))
                    owed = 0
                said = await self._until_deadline(call)
                if not isinstance(said, Part):
                    failed = said if isinstance(said, Failed) else None
                    raise Broken(
                        failed.code if failed else "answer_broken",
                        failed.message if failed else "The answer broke off.",
                    )
                part = said
        finally:
            await self._end(call)

    async def _end(self, call: _Call) -> None:
        """Forget the call; whoever works on it is told to stop."""
        self._calls.pop(call.ask.request_id, None)
        if not call.over:
            await self._say(call, Cancel(call.ask.request_id))

    async def _say(self, call: _Call, message: ToWorker) -> None:
        if call.worker_id is not None:
            await self._publish(call.worker_id, message)

    async def _publish(self, worker_id: WorkerId, message: ToWorker) -> None:
        with contextlib.suppress(nats.errors.Error):  # it learns by its next check
            await self._client.publish(subjects.online_worker(worker_id), encode(message))

    async def _heard(self, message: Msg) -> None:
        try:
            said = decode_to_gateway(message.data)
        except msgspec.DecodeError as error:
            log.warning("not understood: a worker of another release?", error=str(error))
            return
        if isinstance(said, Holding):
            await self._hear_holding(said, message)
            return
        call = self._calls.get(said.request_id)
        if call is None:
            if isinstance(said, Taken):  # too late: somebody else has it, or nobody wants it
                await self._publish(said.worker_id, Cancel(said.request_id))
            return
        if isinstance(said, Taken):
            call.worker_id = said.worker_id
        call.heard_at = asyncio.get_running_loop().time()
        call.hear(said)

    async def _hear_holding(self, holding: Holding, message: Msg) -> None:
        now = asyncio.get_running_loop().time()
        held = set(holding.request_ids)
        for call in self._calls.values():
            if call.worker_id != holding.worker_id or call.over:
                continue
            call.heard_at = now
            call.missing = 0 if call.ask.request_id in held else call.missing + 1
            if call.missing >= MISSING_MAX:
                call.fail("answer_broken", "The end of the answer was lost on its way.")
        forgotten = Forgotten([it for it in holding.request_ids if it not in self._calls])
        with contextlib.suppress(nats.errors.Error):
            await self._client.publish(message.reply, encode(forgotten))

    async def _heard_nobody(self, message: Msg) -> None:
        request_id = message.subject.rpartition(".")[2]
        if (call := self._calls.get(request_id)) is not None and call.worker_id is None:
            call.hear(_Nobody())

    async def _watch(self) -> None:
        """Give up workers that have fallen silent. After a pause of this process (a frozen machine)
        all have the whole time again: what they said meanwhile is yet to be read."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(self._settings.inference_check_seconds)
            now = loop.time()
            if now - looked > 2 * self._settings.inference_check_seconds:
                for call in self._calls.values():
                    call.heard_at = now
            looked = now
            oldest = now - self._settings.inference_silence_seconds
            for call in self._calls.values():
                if call.worker_id is not None and not call.over and call.heard_at < oldest:
                    call.fail("worker_lost", "The worker that had this request is gone.")
