"""Connecting to NATS so that the connection outlives servers, networks and elections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats
import structlog
from nats.aio.client import Client

from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

PING_INTERVAL_SECONDS = 3
# nats-py declares an int and sleeps for what it gets; a quarter of a second is what we want.
RECONNECT_WAIT_SECONDS: Any = 0.25
CONNECT_TIMEOUT_SECONDS = 5
FIRST_CONNECT_SECONDS = 5
CLOSE_FLUSH_SECONDS = 2


class Connection:
    """A NATS client, and a place to ask to be told after every reconnect."""

    def __init__(self) -> None:
        self.client = Client()
        self.on_reconnect: set[Callable[[], None]] = set()
        self._closing = False

    async def open(self, settings: Settings, name: str) -> None:
        """Connect; keeps trying for ever once it has been connected.

        Raises:
            nats.errors.NoServersError: nobody answers at the configured addresses.
        """
        try:
            async with asyncio.timeout(FIRST_CONNECT_SECONDS):
                await self.client.connect(
                    servers=settings.nats_url.split(","),
                    name=name,
                    ping_interval=PING_INTERVAL_SECONDS,
                    max_outstanding_pings=2,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_SECONDS,
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    error_cb=_note_error,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._reconnected,
                )
        except TimeoutError as error:
            # Without a limit on reconnects the client tries the first connection for ever, too.
            await self.client.close()
            raise nats.errors.NoServersError from error

    async def close(self) -> None:
        """Send what waits, as far as the server takes it, and close."""
        self._closing = True
        try:
            if self.client.is_connected:
                await self.client.flush(timeout=CLOSE_FLUSH_SECONDS)
        except nats.errors.Error as error:
            log.info("nats flush failed at close", error=repr(error))
        # nats-py 2.16 drains a socket that the server may have closed already.
        with suppress(ConnectionError):
            await self.client.close()

    async def _disconnected(self) -> None:
        if not self._closing:
            log.info("nats disconnected")

    async def _reconnected(self) -> None:
        log.info(
            "nats reconnected",
            server=str(self.client.connected_url and self.client.connected_url.netloc),
        )
        for callback in tuple(self.on_reconnect):
            callback()


async def _note_error(error: Exception) -> None:
    log.warning("nats error", error=repr(error))


@asynccontextmanager
async def connect(settings: Settings, name: str) -> AsyncIterator[Connection]:
    """Yield a connection named ``name``; flushes and closes it at the end."""
    connection = Connection()
    await connection.open(settings, name)
    try:
        yield connection
    finally:
        await connection.close()
