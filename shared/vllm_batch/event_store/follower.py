"""Following a stream in order and without gaps: an ordered push consumer that heals itself.

The server numbers what it sends to a consumer. Any gap in those numbers, silence for longer than
the heartbeats allow, or a reconnect leads to a fresh consumer from the last sequence that was seen.
Flow control is answered only after a batch was taken, so a slow reader holds the server back and
memory stays bounded.

A follower of one subject names it in the subject of its request, where NATS can refuse it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from vllm_batch.messaging.connection import Connection

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 3.0
RETRY_SECONDS = 0.5
INACTIVE_SECONDS = 30.0
READ_INACTIVE_SECONDS = 2.0
BATCH_EVENTS_MAX = 2000

Raw = tuple[int, bytes]


class _Gap(Exception):
    """The consumer's numbering broke, or it went silent."""


class Follower:
    """One reader's position in a stream. ``position`` is the last sequence that was handed out."""

    def __init__(
        self, connection: Connection, stream: str, subjects: Sequence[str], *, after: int
    ) -> None:
        self.position = after
        self._connection = connection
        self._stream = stream
        self._subjects = list(subjects)
        self._buffer: list[Raw] = []
        self._flow_control: list[str] = []
        self._arrived = asyncio.Event()
        self._broken = False
        self._next_number = 1
        self._consumer = ""
        self._left = 0

    async def batches(self, *, to_end: bool = False) -> AsyncGenerator[list[Raw], None]:
        """Yield (sequence, payload) lists for ever, or ``to_end``: those that are there."""
        while True:
            try:
                async for batch in self._session(to_end):
                    yield batch
                if to_end:
                    return
            except (
                _Gap,
                nats.errors.Error,
                JetStreamError,
                TimeoutError,
                ConnectionError,
            ) as error:
                log.debug(
                    "following anew", stream=self._stream, after=self.position, why=repr(error)
                )
                if not isinstance(error, _Gap):
                    await asyncio.sleep(RETRY_SECONDS)

    async def _session(self, to_end: bool) -> AsyncIterator[list[Raw]]:
        client = self._connection.client
        inbox = client.new_inbox()
        self._reset()
        subscription = await client.subscribe(
            inbox, cb=self._receive, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        self._connection.on_reconnect.add(self._break)
        try:
            await self._create_consumer(inbox, to_end)
            while not to_end or self._left > 0:
                await self._wait()
                while self._buffer:
                    batch, self._buffer = (
                        self._buffer[:BATCH_EVENTS_MAX],
                        self._buffer[BATCH_EVENTS_MAX:],
                    )
                    self.position = batch[-1][0]
                    self._left -= len(batch)
                    yield batch
                await self._release_flow()
        finally:
            self._connection.on_reconnect.discard(self._break)
            if not client.is_closed:
                await subscription.unsubscribe()

    def _reset(self) -> None:
        self._buffer, self._flow_control = [], []
        self._arrived.clear()
        self._broken = False
        self._next_number = 1
        self._consumer = ""

    async def _create_consumer(self, inbox: str, to_end: bool) -> None:
        single = self._subjects[0] if len(self._subjects) == 1 else None
        config = ConsumerConfig(
            name=inbox.rpartition(".")[2] if single else None,
            deliver_subject=inbox,
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.position + 1,
            filter_subject=single,
            filter_subjects=None if single else self._subjects,
            flow_control=True,
            idle_heartbeat=HEARTBEAT_SECONDS,
            inactive_threshold=READ_INACTIVE_SECONDS if to_end else INACTIVE_SECONDS,
            max_deliver=1,
            mem_storage=True,
            num_replicas=1,
        )
        js = self._connection.client.jetstream(timeout=SILENCE_SECONDS)
        info = await js.add_consumer(self._stream, config)
        self._consumer = info.name
        self._left = info.num_pending or 0

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._arrived.wait()
        except TimeoutError:
            raise _Gap("silent") from None
        self._arrived.clear()
        if self._broken and not self._buffer:
            raise _Gap("gap or reconnect")

    async def _release_flow(self) -> None:
        replies, self._flow_control = self._flow_control, []
        for reply in replies:
            await self._connection.client.publish(reply)

    def _break(self) -> None:
        self._broken = True
        self._arrived.set()

    async def _receive(self, message: Msg) -> None:
        if self._broken:
            return
        self._arrived.set()
        if message.headers and message.headers.get("Status") == "100":
            self._receive_status(message)
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<timestamp>.<pending>,
        # or with <domain>.<account> after ACK and a random token at the end.
        tokens = message.reply.split(".")
        first = 5 if len(tokens) == 9 else 7
        if int(tokens[first + 1]) != self._next_number:
            self._break()
            return
        self._next_number += 1
        self._buffer.append((int(tokens[first]), message.data))

    def _receive_status(self, message: Msg) -> None:
        if message.reply:
            self._flow_control.append(message.reply)
            return
        headers = message.headers or {}
        if (last := headers.get("Nats-Last-Consumer")) and int(last) != self._next_number - 1:
            self._break()
        if stalled := headers.get("Nats-Consumer-Stalled"):
            self._flow_control.append(stalled)
