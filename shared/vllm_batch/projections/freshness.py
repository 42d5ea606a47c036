"""How far the read models are: one connection that listens for the projector's checkpoint.

Whoever waits for a sequence waits for a notification here; nobody polls. The connection is made
again for as long as it takes, and a query now and then shows whether a silent server still lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from typing import Any

import structlog

from vllm_batch.postgres import queries
from vllm_batch.postgres.connection import AWAY, NOT_FILLED, Connection, connect
from vllm_batch.projections.runner import channel
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0
ANSWER_SECONDS = 1.0
RETRY_SECONDS = 0.25


class Freshness:
    """The checkpoint as it is now. ``up`` tells whether Postgres answers and is filled."""

    def __init__(self, settings: Settings) -> None:
        self.seq = -1
        self.up = False
        self._settings = settings
        self._sql = queries.load("vllm_batch.projections", "read_models.sql")
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()
        self._first_try = asyncio.Event()
        self._changed = asyncio.Event()

    async def wait_first_try(self, timeout_seconds: float) -> None:
        """Wait until the first attempt to connect is over, whichever way it went."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._first_try.wait()

    async def wait_for(self, seq: int, timeout_seconds: float) -> bool:
        """Wait until ``seq`` is projected; False when it takes too long or Postgres is away."""
        if self.seq >= seq and self.up:
            return True
        if not self.up or timeout_seconds <= 0:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (seq, next(self._tickets), future))
        await asyncio.wait({future}, timeout=timeout_seconds)
        if future.done():
            return self.up and self.seq >= seq
        future.cancel()
        return False

    async def run(self) -> None:
        """Listen for ever. Only cancelling ends it."""
        while True:
            try:
                await self._listen()
            except (*AWAY, *NOT_FILLED) as error:
                if self.up or not self._first_try.is_set():
                    log.warning("read models are away", error=repr(error))
            self._gone()
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - jitter

    async def _listen(self) -> None:
        async with connect(self._settings) as connection:
            connection.add_termination_listener(self._terminated)
            await connection.add_listener(channel(self._settings.postgres_schema), self._heard)
            while True:
                await self._check(connection)
                self._first_try.set()
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._changed.wait()

    async def _check(self, connection: Connection) -> None:
        seq = await connection.fetchval(self._sql["checkpoint"], timeout=ANSWER_SECONDS)
        if not self.up:
            log.info("read models are there", at=seq)
        self.up = True
        self._reached(-1 if seq is None else seq)

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        self._reached(int(str(payload)))

    def _terminated(self, _connection: Any) -> None:
        self._changed.set()

    def _reached(self, seq: int) -> None:
        # Not the highest ever seen: a rebuild starts at 0 again, and so do the rows.
        self.seq = seq
        while self._waiting and self._waiting[0][0] <= seq:
            self._wake(heapq.heappop(self._waiting)[2])

    def _gone(self) -> None:
        self.up = False
        self.seq = -1
        self._first_try.set()
        while self._waiting:
            self._wake(self._waiting.pop()[2])

    @staticmethod
    def _wake(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)
