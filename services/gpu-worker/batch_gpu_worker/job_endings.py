"""Hears that a job was cancelled or its window closed, so that its requests stop at once.

A plain subscription that may miss one: the leader closes such a chunk by itself a little later, and
then the lease is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from batch_gpu_worker.lease import ReleaseReason
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

REMEMBERED_MAX = 10_000


class JobEndings:
    """Remembers the jobs that ended lately; ``on_end`` is told of each."""

    def __init__(self) -> None:
        self.on_end: Callable[[JobId, ReleaseReason], None] = lambda _job, _reason: None
        self._ended: dict[JobId, ReleaseReason] = {}

    def of(self, job_id: JobId) -> ReleaseReason | None:
        """Return why the job needs no more work, None if nothing is known."""
        return self._ended.get(job_id)

    def note(self, job_id: JobId, reason: ReleaseReason) -> None:
        """Remember that a job ended."""
        if job_id in self._ended:
            return
        if len(self._ended) == REMEMBERED_MAX:
            del self._ended[next(iter(self._ended))]
        self._ended[job_id] = reason
        self.on_end(job_id, reason)

    @asynccontextmanager
    async def listening(self, client: Client) -> AsyncIterator[None]:
        """Hear of endings while the context lasts."""

        async def cancelled(message: Msg) -> None:
            self.note(JobId(message.subject.rpartition(".")[2]), "cancelled")

        async def expired(message: Msg) -> None:
            self.note(JobId(message.subject.rpartition(".")[2]), "expired")

        heard = [
            await client.subscribe(subjects.CANCEL_REQUESTS, cb=cancelled),
            await client.subscribe(subjects.CLOSED_WINDOWS, cb=expired),
        ]
        try:
            yield
        finally:
            for subscription in heard:
                if not client.is_closed:
                    await subscription.unsubscribe()
