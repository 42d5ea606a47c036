"""Hears that somebody else ended a lease of ours, so that what hangs does not keep its place.

A worker learns that its lease is over when it records a result; a request that never ends would
keep it from learning. A plain subscription that may miss one: then the next hint tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.aio.msg import Msg

from batch_gpu_worker.holdings import HeldChunk, Holdings
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

SETTLE_SECONDS = 0.2
"""What is heard is an attempt to append: the log needs a moment to take or refuse it."""


class LeaseEndings:
    """Has a held chunk's lease checked when an end of it is heard."""

    def __init__(
        self, holdings: Holdings, check_lease: Callable[[HeldChunk], Awaitable[bool]]
    ) -> None:
        self._holdings = holdings
        self._check_lease = check_lease
        self._checks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, client: Client) -> AsyncIterator[None]:
        """Hear of endings while the context lasts."""
        heard = [
            await client.subscribe(subject, cb=self._hear)
            for subject in (subjects.RELEASED_CHUNKS, subjects.CLOSED_CHUNKS)
        ]
        try:
            yield
        finally:
            for subscription in heard:
                if not client.is_closed:
                    await subscription.unsubscribe()
            for check in tuple(self._checks):
                check.cancel()
            await asyncio.gather(*self._checks, return_exceptions=True)

    async def _hear(self, message: Msg) -> None:
        _, _, job_id, number = message.subject.split(".")
        held = self._holdings.find((JobId(job_id), int(number)))
        if held is None or held.over:
            return
        check = asyncio.create_task(self._check(held))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    async def _check(self, held: HeldChunk) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        await self._check_lease(held)
