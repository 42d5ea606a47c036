"""Gateways tell each other what projects have used, so that a limit is that of all together.

Over core NATS, every rate_share_seconds, and only where a limit counts something. Nothing is kept:
a gateway that comes later, or that NATS is away from, counts what it sees itself. Between two
messages each gateway may let in what it believes is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from batch_gateway.api.rates import Rates, Used
from vllm_batch import ids, tasks
from vllm_batch.ids import ProjectId
from vllm_batch.messaging import subjects
from vllm_batch.project_limits import ProjectLimits

log = structlog.get_logger(__name__)


class _Report(msgspec.Struct, frozen=True):
    """What one gateway has let in since its last report."""

    gateway: str
    used: dict[ProjectId, Used]


_decode = msgspec.json.Decoder(_Report).decode


class RateSharing:
    """See the module; `running`."""

    def __init__(
        self, client: Client, rates: Rates, limits: ProjectLimits, share_seconds: float
    ) -> None:
        self._client = client
        self._rates = rates
        self._limits = limits
        self._share_seconds = share_seconds
        self._gateway = ids.new("gateway_")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell and hear while the context lasts."""
        subscription = await self._client.subscribe(subjects.RATES_USED, cb=self._heard)
        telling = asyncio.create_task(self._tell(), name="share rates")
        try:
            yield
        finally:
            await tasks.end(telling)
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._share_seconds)
            if not (used := self._rates.take_unshared()):
                continue
            if not self._client.is_connected:
                continue  # it would arrive when its minute is over
            report = _Report(self._gateway, used)
            try:
                await self._client.publish(subjects.RATES_USED, msgspec.json.encode(report))
            except nats.errors.Error as error:
                log.warning("other gateways do not know of calls", error=repr(error))

    async def _heard(self, message: Msg) -> None:
        try:
            report = _decode(message.data)
        except msgspec.DecodeError as error:
            log.warning("not understood: a gateway of another release?", error=str(error))
            return
        if report.gateway == self._gateway:
            return
        for project, used in report.used.items():
            self._rates.add_of_others(project, self._limits.of(project), used)
