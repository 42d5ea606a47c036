"""Who is heard of: the last heartbeat of each worker, by our own monotonic clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

FORGOTTEN_SECONDS = 3600.0


class Pulse:
    """The last heartbeats. A worker that has been silent for an hour is forgotten."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._heard: dict[WorkerId, tuple[float, Heartbeat]] = {}

    @asynccontextmanager
    async def listening(self, client: Client) -> AsyncIterator[None]:
        """Listen until the end of the block."""
        subscription = await client.subscribe(subjects.ALL_HEARTBEATS, cb=self._receive)
        try:
            yield
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()

    async def _receive(self, message: Msg) -> None:
        try:
            self.hear(msgspec.json.decode(message.data, type=Heartbeat))
        except msgspec.DecodeError as error:
            log.warning("a heartbeat cannot be read", subject=message.subject, error=str(error))

    def hear(self, heartbeat: Heartbeat) -> None:
        """Take in one heartbeat."""
        self._heard[heartbeat.worker_id] = (self._monotonic(), heartbeat)

    def beating(self, within_seconds: float) -> list[Heartbeat]:
        """Return the last heartbeat of every worker that was heard ``within_seconds``."""
        now = self._monotonic()
        for worker_id, (heard, _) in list(self._heard.items()):
            if now - heard > FORGOTTEN_SECONDS:
                del self._heard[worker_id]
        return [beat for heard, beat in self._heard.values() if now - heard <= within_seconds]

    def beats(self, worker_id: WorkerId, within_seconds: float) -> bool:
        """Tell whether one worker was heard ``within_seconds``."""
        heard = self._heard.get(worker_id)
        return heard is not None and self._monotonic() - heard[0] <= within_seconds
