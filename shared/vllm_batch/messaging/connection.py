"""Connecting to NATS so that the connection outlives servers, networks and elections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import nats
import structlog
from nats.aio.client import Client

from vllm_batch import tasks, tls
from vllm_batch.messaging import permissions
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
            nats.errors.NoServersError: nobody answers at the configured addresses, or none of
                them takes the user and password.
            StackError: a file of the settings for TLS cannot be used.
        """
        connecting = asyncio.create_task(
            self.client.connect(
                servers=settings.nats_url.split(","),
                name=name,
                ping_interval=PING_INTERVAL_SECONDS,
                max_outstanding_pings=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_SECONDS,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                **_identity(settings),
                error_cb=_note_error,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
            )
        )
        # Without a limit on reconnects the client tries the first connection for ever, too, and
        # where a server refuses it again and again, nats-py 2.16 may swallow a cancellation.
        try:
            done, _ = await asyncio.wait({connecting}, timeout=FIRST_CONNECT_SECONDS)
        finally:
            await tasks.end(connecting)
        if not done:
            await self.client.close()
            raise nats.errors.NoServersError
        await connecting

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
        url = self.client.connected_url  # its netloc has the password in it
        log.info("nats reconnected", server=url and f"{url.hostname}:{url.port}")
        for callback in tuple(self.on_reconnect):
            callback()


def without_passwords(nats_url: str) -> str:
    """Return the addresses of a ``nats_url`` as they may be shown."""
    parts = (url.partition("://") for url in nats_url.split(","))
    return ",".join(f"{scheme}://{rest.rpartition('@')[2]}" for scheme, _, rest in parts)


def _identity(settings: Settings) -> dict[str, Any]:
    """Return as whom to connect: user and password of the URL, and a certificate.

    Answers go to inboxes below the user's own prefix, which the servers let nobody else hear.
    """
    options: dict[str, Any] = {}
    url = urlsplit(settings.nats_url.partition(",")[0])
    if url.username and url.password:
        # For every server, those that the first one tells of included.
        options["user"], options["password"] = unquote(url.username), unquote(url.password)
        options["inbox_prefix"] = permissions.inbox_prefix(options["user"])
    if context := tls.client_context(
        ca=settings.nats_tls_ca, cert=settings.nats_tls_cert, key=settings.nats_tls_key,
        setting="nats_tls",
    ):  # fmt: skip
        options["tls"] = context
    return options


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
