"""Hints about chunks that may be leased, and the only place that acks.

A hint is acked as soon as its chunk is leased (or is not to be had): the lease lives in the event
log, and a hint that is lost or doubled does no harm, because the scheduler offers again what stays
unleased.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum

import msgspec
import nats.errors
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from vllm_batch import tracing
from vllm_batch.ids import JobId, ModelKey
from vllm_batch.messaging import subjects, topology


class Hint(msgspec.Struct, frozen=True):
    """Chunk ``chunk`` of ``job_id`` may be leased."""

    job_id: JobId
    chunk: int


class Outcome(Enum):
    """What became of a delivery."""

    DONE = "done"
    RETRY_LATER = "retry_later"
    REJECT = "reject"


RETRY_DELAY_SECONDS = 1.0
_NOT_DELETED = 10057  # the server's way of saying that there is no such message

Handler = Callable[[Hint], Awaitable[Outcome]]


class HintQueue:
    """Hints for one model's workers: the scheduler offers, workers take."""

    def __init__(self, js: JetStreamContext, key: ModelKey) -> None:
        self._js = js
        self._key = key
        self._subscription: JetStreamContext.PullSubscription | None = None

    async def offer(self, hint: Hint) -> int:
        """Publish a hint; return its sequence, which `is_waiting` takes.

        Raises:
            nats.errors.Error: it may not have been stored; the scheduler will offer again.
        """
        subject, headers = subjects.work(self._key), tracing.headers()
        ack = await self._js.publish(subject, msgspec.json.encode(hint), headers=headers or None)
        return int(ack.seq)

    async def is_waiting(self, sequence: int) -> bool:
        """Tell whether the hint with ``sequence`` still waits for a worker, or for its ack.

        Raises:
            nats.errors.Error: NATS is away.
        """
        try:
            await self._js.get_msg(topology.WORK, sequence)
        except NotFoundError:
            return False
        return True

    async def withdraw(self, sequence: int) -> None:
        """Take back the hint with ``sequence``, if it still waits.

        Raises:
            nats.errors.Error: NATS is away.
        """
        try:
            await self._js.delete_msg(topology.WORK, sequence)
        except APIError as error:
            if error.err_code != _NOT_DELETED:
                raise

    async def take(self, handler: Handler, *, wait_seconds: float) -> Outcome | None:
        """Hand the next hint to ``handler`` and ack after its outcome; None if none came in time.

        Raises:
            nats.errors.Error: NATS is away; call again.
        """
        if self._subscription is None:
            durable = await topology.ensure_work_consumer(self._js, self._key)
            self._subscription = await self._js.pull_subscribe_bind(durable, topology.WORK)
        try:
            (message,) = await self._subscription.fetch(1, timeout=wait_seconds)
        except nats.errors.TimeoutError:
            return None
        except (JetStreamError, nats.errors.Error):
            await self.close()  # the consumer may be gone: make it anew next time
            raise
        try:
            hint = msgspec.json.decode(message.data, type=Hint)
        except msgspec.DecodeError:
            await message.term()
            return Outcome.REJECT
        with tracing.continued(message.headers):
            outcome = await handler(hint)
        match outcome:
            case Outcome.DONE:
                await message.ack()
            case Outcome.RETRY_LATER:
                await message.nak(delay=RETRY_DELAY_SECONDS)
            case Outcome.REJECT:
                await message.term()
        return outcome

    async def close(self) -> None:
        """Stop taking; the durable consumer stays."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error:
                return
