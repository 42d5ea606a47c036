"""The door before the engine: who has to wait for it, and who has been told not to come again.

Open as long as the engine is well. After a crash it looks who was in flight, and while suspects are
in quarantine (see `poison`) it lets only those in whose turn it is.
"""

from __future__ import annotations

import asyncio

import structlog

from batch_gpu_worker.engines.base import Engine
from batch_gpu_worker.poison import Quarantine, RequestKey
from vllm_batch.errors import EngineCrashed

log = structlog.get_logger(__name__)


class Ward:
    """``closed`` tells whether a request has to ask `admit` before it goes to the engine."""

    def __init__(self, engine: Engine) -> None:
        self.closed = False
        self.quarantine = Quarantine()
        self._engine = engine
        self._fallen: set[RequestKey] = set()
        self._convicted: set[RequestKey] = set()
        self._deaths: list[bool] = []
        self._changed = asyncio.Event()

    def engine_died(self, *, blame: bool) -> None:
        """The engine is down; whether what it held may be to blame. It is not ready yet again."""
        self.closed = True
        self._deaths.append(blame)

    def fell(self, key: RequestKey) -> None:
        """The engine died while it held the request."""
        self.closed = True
        self._fallen.add(key)

    def left(self, key: RequestKey) -> None:
        """The request has its result or is no longer wanted. Cheap while all is well."""
        if not self.closed and not self.quarantine.watching:
            return
        self._fallen.discard(key)
        self._convicted.discard(key)
        self.quarantine.left(key)
        self._turn_over()

    async def admit(self, key: RequestKey) -> None:
        """Wait until the engine is ready for the request.

        Raises:
            EngineCrashed: it crashed the engine alone, and gets no further chance.
        """
        while True:
            await self._engine.ready.wait()
            self._judge()
            if key in self._convicted:
                raise EngineCrashed("the request crashed the engine, alone")
            if self.quarantine.may_run(key):
                return
            await self._changed.wait()

    def _judge(self) -> None:
        """Everybody who was in flight at the crash has said so by now: the engine is up again."""
        if not self._deaths:
            return
        blame, self._deaths = any(self._deaths), []
        fallen, self._fallen = self._fallen, set()
        convicted = self.quarantine.crashed(fallen) if blame else None
        if convicted is not None:
            self._convicted.add(convicted)
            job, chunk, index = convicted
            log.error("a request crashes the engine", job=job, chunk=chunk, index=index)
        if self.quarantine.active:
            log.warning(
                "looking for what crashes the engine", in_flight=len(fallen),
                suspects=self.quarantine.suspects,
            )  # fmt: skip
        self._turn_over()

    def _turn_over(self) -> None:
        """Let those look again who wait for their turn."""
        self._changed.set()
        self._changed = asyncio.Event()
        self.closed = bool(
            self._deaths or self._fallen or self._convicted or self.quarantine.active
        )
