"""Events handed, one by one, to whoever of several equal processes is free; acked when handled.

A durable pull consumer on EVENTS: what was handled is remembered by the server, so a process that
starts goes on where the last one stopped. For duties whose deeds are repeatable: an event may come
twice, and out of order after a retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError

from vllm_batch import tasks
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.events import Recorded, decode
from vllm_batch.messaging import topology
from vllm_batch.messaging.consumer import Outcome

ACK_WAIT_SECONDS = 10.0
FETCH_SECONDS = 2.0
RETRY_DELAY_SECONDS = 2.0
_EXISTS = frozenset({10013, 10105, 10148})

Handler = Callable[[Recorded], Awaitable[Outcome]]


class EventConsumer:
    """The events under ``subjects`` that the durable ``name`` has not handled yet."""

    def __init__(self, js: JetStreamContext, name: str, subjects: Sequence[str]) -> None:
        self._js = js
        self._name = name
        self._subjects = list(subjects)
        self._subscription: JetStreamContext.PullSubscription | None = None

    async def take(self, handler: Handler) -> Outcome | None:
        """Hand the next event to ``handler`` and ack by its outcome; None if none came in time.

        What ``handler`` raises is raised; the event comes again.

        Raises:
            EventStoreUnavailable: NATS is away; call again.
        """
        try:
            if self._subscription is None:
                self._subscription = await self._subscribe()
            (message,) = await self._subscription.fetch(1, timeout=FETCH_SECONDS)
        except nats.errors.TimeoutError:
            return None
        except (JetStreamError, nats.errors.Error) as error:
            await self.close()  # the consumer may be gone: make it anew next time
            raise EventStoreUnavailable(f"consumer {self._name}: {error!r}") from error
        recorded = decode(message.data, message.metadata.sequence.stream)
        try:
            async with _kept(message):
                outcome = await handler(recorded)
        except BaseException:
            with suppress(nats.errors.Error):  # then it comes again after ACK_WAIT_SECONDS
                await message.nak(delay=RETRY_DELAY_SECONDS)
            raise
        match outcome:
            case Outcome.DONE:
                await message.ack()
            case Outcome.RETRY_LATER:
                await message.nak(delay=RETRY_DELAY_SECONDS)
            case Outcome.REJECT:
                await message.term()
        return outcome

    async def close(self) -> None:
        """Stop taking; what the server remembers stays."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error:
                return

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        config = ConsumerConfig(
            durable_name=self._name,
            filter_subjects=self._subjects,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
        )
        try:
            await self._js.add_consumer(topology.EVENTS, config)
        except APIError as error:
            if error.err_code not in _EXISTS:
                raise
        return await self._js.pull_subscribe_bind(self._name, topology.EVENTS)


@asynccontextmanager
async def _kept(message: Msg) -> AsyncIterator[None]:
    """Keep a message from being delivered again while it is worked on."""

    async def extend() -> None:
        while True:
            await asyncio.sleep(ACK_WAIT_SECONDS / 3)
            with suppress(nats.errors.Error):
                await message.in_progress()

    extending = asyncio.create_task(extend())
    try:
        yield
    finally:
        await tasks.end(extending)
