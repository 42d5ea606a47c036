"""The event store over NATS JetStream.

Writes with ``Nats-Expected-Last-Subject-Sequence`` over the aggregate's wildcard (nats-server >=
2.12), reads by direct get in batches, follows with an ordered push consumer of its own.

In a cluster any replica answers a direct get, one that lags behind its leader too. A read asks the
leader first how far the subject is, and goes on until it is there: what was acknowledged before a
read is in it, whoever wrote it.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from enum import Enum
from functools import partial
from typing import TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import StreamInfo
from nats.js.errors import (
    APIError,
    NoStreamResponseError,
    NotFoundError,
    ServerError,
    ServiceUnavailableError,
)
from prometheus_client import CollectorRegistry

from vllm_batch import ids, tracing
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.errors import Conflict, EventStoreError, EventStoreUnavailable
from vllm_batch.event_store.follower import Follower
from vllm_batch.events import Event, Recorded, decode, encode
from vllm_batch.ids import EventId
from vllm_batch.messaging import connection, subjects, topology
from vllm_batch.messaging.connection import Connection
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.settings import Settings

T = TypeVar("T")

ATTEMPT_SECONDS = 3.0
READ_TIMEOUT_SECONDS = 5.0
READ_ATTEMPTS = 4
READ_BATCH = 500
LAGGING_SECONDS = 5.0
"""How long a replica may lag behind the one that took an append."""
STREAMS_SECONDS = 15.0
"""How long who may not make the streams waits for who does."""
_WRONG_LAST_SEQUENCE = 10071
_NAMED_SEQUENCE = re.compile(r"(\d+)\s*$")
_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_TRANSIENT = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.StaleConnectionError,
    nats.errors.OutboundBufferLimitError,
    NoStreamResponseError,
    ServerError,
    ServiceUnavailableError,
    ConnectionError,
)


class Access(Enum):
    """What the user that a process connects as may do on NATS; see `messaging.permissions`."""

    FULL = "full"
    """Reads the whole log, and makes the streams where they are missing."""
    READER = "reader"
    """Reads the whole log; somebody else makes the streams."""
    FILTERED = "filtered"
    """Reads some nouns only, a subject at a time, through consumers whose filter NATS checks."""


class JetStreamEventStore:
    """Appends, reads and follows the EVENTS stream."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        *,
        source: str,
        access: Access = Access.FULL,
        clock: Clock | None = None,
        metrics: EventLogMetrics | None = None,
        new_event_id: Callable[[], EventId] = ids.new_event_id,
    ) -> None:
        self.connection = connection
        self.js: JetStreamContext = connection.client.jetstream(timeout=ATTEMPT_SECONDS)
        self._settings = settings
        self._source = source
        self._access = access
        self._replicated = False
        self._clock = clock or SystemClock()
        self._new_event_id = new_event_id
        self.metrics = metrics or EventLogMetrics(CollectorRegistry())
        self._in_flight = asyncio.Semaphore(settings.append_in_flight_max)

    async def prepare(self) -> None:
        """See to it that the streams exist, and learn whether the log has replicas.

        Raises:
            EventStoreUnavailable: JetStream does not answer, or nobody has made the streams.
        """
        if self._access is Access.FULL:
            ensure = partial(topology.ensure_streams, self.js, self._settings)
            await self._patiently("the streams", ensure)
        else:
            await _streams_exist(self.js)
        info = await self._patiently("the stream", lambda: self.js.stream_info(topology.EVENTS))
        self._replicated = (info.config.num_replicas or 1) > 1

    def measure_connection(self) -> None:
        """Bring the gauge of the connection up to date."""
        self.metrics.connected.set(self.connection.client.is_connected)

    async def append(
        self,
        event: Event,
        *,
        expected: int,
        event_id: EventId | None = None,
        at: datetime | None = None,
    ) -> Recorded:
        """Record ``event``; see `EventStore.append`."""
        event_id = event_id or self._new_event_id()
        now = at or self._clock.now()
        trace = tracing.headers()
        traceparent = trace.get("traceparent")
        payload = encode(
            event, event_id=event_id, source=self._source, time=now, traceparent=traceparent
        )
        headers = {
            **trace,
            "Nats-Msg-Id": event_id,
            "Nats-Expected-Last-Subject-Sequence": str(expected),
            "Nats-Expected-Last-Subject-Sequence-Subject": subjects.of_aggregate(event),
        }
        async with self._in_flight:
            with self.metrics.appending(event.TYPE):
                seq = await self._publish(event, payload, headers, event_id)
        return Recorded(seq, event_id, now, self._source, event, traceparent)

    async def _publish(
        self, event: Event, payload: bytes, headers: dict[str, str], event_id: EventId
    ) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.append_timeout_seconds
        subject = subjects.of_event(event)
        for attempt in range(1_000_000):
            try:
                return await self._publish_once(event, payload, headers, event_id)
            except (*_TRANSIENT, TimeoutError) as error:
                reason: Exception = error
            except APIError as error:
                raise EventStoreError(f"{subject} was refused: {error}") from error
            pause = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
            pause *= random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
            if loop.time() + pause > deadline:
                raise EventStoreUnavailable(
                    f"{subject} was not acknowledged: {reason!r}"
                ) from reason
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _publish_once(
        self, event: Event, payload: bytes, headers: dict[str, str], event_id: EventId
    ) -> int:
        """Return the event's sequence. Raises Conflict, and what JetStream and NATS raise."""
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS + 1):
                ack = await self.js.publish(
                    subjects.of_event(event), payload, headers=dict(headers)
                )
        except APIError as error:
            if error.err_code == _WRONG_LAST_SEQUENCE:
                return await self._recorded_before(event, event_id, error)
            raise
        return int(ack.seq)

    async def _recorded_before(self, event: Event, event_id: EventId, error: APIError) -> int:
        """Return the sequence if the aggregate's last event is this very one (a lost
        acknowledgement).

        On R1 a retry is answered with "wrong last sequence" rather than "duplicate" (seen with
        2.15.1).
        """
        subject = subjects.of_aggregate(event)
        last = await self._last_of(subject, error)
        if last is None:
            raise Conflict(f"{subject} has moved on") from error
        if last.id == event_id:
            return last.seq
        raise Conflict(f"{subject} is at {last.seq}")

    async def _last_of(self, subject: str, refusal: APIError) -> Recorded | None:
        """Return the newest event of an aggregate, where ``refusal`` is of an append to it."""
        if self._access is not Access.FILTERED:
            try:
                # The stream's leader answers this one; a direct get may come from a lagging
                # replica.
                message = await self.js.get_last_msg(topology.EVENTS, subject)
            except NotFoundError:
                return None
            if message.data is None or message.seq is None:
                return None
            return decode(message.data, message.seq)
        # The refusal names the sequence: what is read belongs to a replica that may not have it.
        named = _NAMED_SEQUENCE.search(refusal.description or "")
        wanted = int(named[1]) if named else 0
        deadline = asyncio.get_running_loop().time() + LAGGING_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            async with aclosing(self._read_filtered(subject, wanted - 1)) as batches:
                found = [recorded async for batch in batches for recorded in batch]
            if found:
                return found[-1]
            await asyncio.sleep(_BACKOFF_SECONDS[1])
        return None

    async def read(self, subject: str, *, after: int = 0) -> AsyncIterator[list[Recorded]]:
        """Yield what is in the log now; see `EventStore.read`."""
        if self._access is Access.FILTERED:
            async with aclosing(self._read_filtered(subject, after)) as batches:
                async for batch in batches:
                    yield batch
            return
        position, lagging_until = after, 0.0
        newest = await self._newest(subject)
        while True:
            ask = partial(self._direct_get_once, subject, position + 1)
            batch, pending = await self._patiently(subject, ask)
            if batch:
                yield batch
                position, lagging_until = batch[-1].seq, 0.0
                if pending:
                    continue
            if position >= newest:
                return
            now = asyncio.get_running_loop().time()
            lagging_until = lagging_until or now + LAGGING_SECONDS
            if now > lagging_until:
                raise EventStoreUnavailable(f"reading {subject}: the replicas lag behind")
            await asyncio.sleep(_BACKOFF_SECONDS[0])
            newest = await self._newest(subject)  # it may have been deleted

    async def _newest(self, subject: str) -> int:
        """Return the sequence of the last event of ``subject`` as the leader has it, 0 where one
        server has the log alone."""
        if not self._replicated:
            return 0
        ask = partial(self.js.get_last_msg, topology.EVENTS, subject)
        try:
            return (await self._patiently(subject, ask)).seq or 0
        except NotFoundError:
            return 0

    async def _read_filtered(
        self, subject: str, after: int
    ) -> AsyncGenerator[list[Recorded], None]:
        follower = Follower(self.connection, topology.EVENTS, [subject], after=max(after, 0))
        async with aclosing(follower.batches(to_end=True)) as batches:
            while True:
                try:
                    async with asyncio.timeout(READ_TIMEOUT_SECONDS * READ_ATTEMPTS):
                        batch = await anext(batches)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise EventStoreUnavailable(f"reading {subject} got no answer") from error
                yield [decode(payload, seq) for seq, payload in batch]

    async def _patiently(self, subject: str, ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(READ_ATTEMPTS):
            try:
                async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                    return await ask()
            except (*_TRANSIENT, TimeoutError) as error:
                if attempt == READ_ATTEMPTS - 1:
                    raise EventStoreUnavailable(
                        f"reading {subject} got no answer: {error!r}"
                    ) from error
                await asyncio.sleep(_BACKOFF_SECONDS[attempt])
        raise AssertionError("unreachable")

    async def _direct_get_once(self, subject: str, seq: int) -> tuple[list[Recorded], int]:
        """Ask for up to READ_BATCH messages; return them and how many are left after them."""
        client = self.connection.client
        inbox = client.new_inbox()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        events: list[Recorded] = []

        async def receive(message: Msg) -> None:
            headers = message.headers or {}
            status = headers.get("Status")
            if status is None:
                events.append(decode(message.data, int(headers["Nats-Sequence"])))
            elif not done.done():
                if status in {"204", "404"}:
                    done.set_result(int(headers.get("Nats-Num-Pending", 0)))
                elif status == "503":
                    done.set_exception(nats.errors.NoRespondersError())
                else:
                    done.set_exception(EventStoreError(f"direct get: {status} {headers}"))

        subscription = await client.subscribe(inbox, cb=receive)
        try:
            request = {"seq": seq, "next_by_subj": subject, "batch": READ_BATCH}
            await client.publish(
                f"$JS.API.DIRECT.GET.{topology.EVENTS}", msgspec.json.encode(request), reply=inbox
            )
            pending = await done
        finally:
            await subscription.unsubscribe()
        return events, pending

    async def follow(
        self, subjects: Sequence[str], *, after: int = 0
    ) -> AsyncIterator[list[Recorded]]:
        """Yield what is there and what comes; see `EventStore.follow`."""
        follower = Follower(self.connection, topology.EVENTS, subjects, after=after)
        async for batch in follower.batches():
            yield [decode(payload, seq) for seq, payload in batch]

    async def last_sequence(self) -> int:
        """Return the sequence of the newest event."""
        info = await self._stream_info()
        return int(info.state.last_seq)

    async def identity(self) -> str:
        """Return the stream's creation time, which no other stream shares."""
        info = await self._stream_info()
        return str(info.created)

    async def _stream_info(self) -> StreamInfo:
        for attempt in range(READ_ATTEMPTS):
            try:
                return await self.js.stream_info(topology.EVENTS)
            except (*_TRANSIENT, TimeoutError) as error:
                if attempt == READ_ATTEMPTS - 1:
                    raise EventStoreUnavailable(f"no answer from JetStream: {error!r}") from error
                await asyncio.sleep(_BACKOFF_SECONDS[attempt])
        raise AssertionError("unreachable")


@asynccontextmanager
async def connect(
    settings: Settings,
    *,
    source: str,
    access: Access = Access.FULL,
    metrics: EventLogMetrics | None = None,
) -> AsyncIterator[JetStreamEventStore]:
    """Yield a connected event store whose streams exist. ``source`` names the process in its
    events.

    Raises:
        EventStoreUnavailable: no NATS server answers or takes the password, or nobody has made the
            streams and this process may not.
        StackError: a file of the settings for TLS cannot be used.
    """
    try:
        async with connection.connect(settings, source) as opened:
            store = JetStreamEventStore(
                opened, settings, source=source, access=access, metrics=metrics
            )
            await store.prepare()
            yield store
    except nats.errors.NoServersError as error:
        where = connection.without_passwords(settings.nats_url)
        raise EventStoreUnavailable(
            f"no NATS server answers at {where}, or it refuses the user, password or certificate"
        ) from error


async def _streams_exist(js: JetStreamContext) -> None:
    """Wait until a gateway has made the streams."""
    deadline = asyncio.get_running_loop().time() + STREAMS_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        try:
            await js.stream_info(topology.EVENTS)
        except (NotFoundError, *_TRANSIENT, TimeoutError):
            await asyncio.sleep(_BACKOFF_SECONDS[2])
        else:
            return
    raise EventStoreUnavailable(
        f"the streams are not there after {STREAMS_SECONDS:g} s: start the api or an orchestrator, "
        "which make them"
    )
