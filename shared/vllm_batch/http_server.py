"""Serving HTTP as a service of ours does: a socket of its own, readiness told, a clean end.

Used by the services that have uvicorn among their dependencies; owns nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator, Mapping
from typing import Any

import uvicorn

from vllm_batch.errors import StackError
from vllm_batch.http_protocol import with_limits
from vllm_batch.notify import notify
from vllm_batch.settings import Settings
from vllm_batch.tls import Pair

BACKLOG = 1024
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 3
HSTS_SECONDS = 365 * 24 * 3600

DATA_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""For answers that end up in a browser: data, whatever they contain, and in nobody's frame."""


class _Server(uvicorn.Server):
    """Uvicorn that tells when it listens, and leaves signals to us: its own way of ending a process
    is to raise the signal again, which would skip closing our connections."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        notify(STOPPING=1)
        self.should_exit = True


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """Return a socket bound to the address; port 0 takes a free one.

    Raises:
        StackError: the address is taken or not ours; names ``setting``, where the port comes from.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StackError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with {setting}"
        ) from error


def url_of(listener: socket.socket, tls: Pair | None = None) -> str:
    """Return the root URL of what listens there."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


async def serve(
    app: Any,
    listener: socket.socket,
    settings: Settings,
    *,
    on_started: Callable[[], None],
    tls: Pair | None = None,
    headers: Mapping[str, str] | None = None,
    shutdown_seconds: int = SHUTDOWN_SECONDS,
) -> None:
    """Serve the ASGI ``app`` until SIGTERM or SIGINT; answers under way may then take
    ``shutdown_seconds`` more. ``headers``: what every answer has; ``tls``: it is HTTPS."""
    fixed = dict(headers or {})
    if tls is not None:
        fixed["strict-transport-security"] = f"max-age={HSTS_SECONDS}"
    config = uvicorn.Config(
        app,
        http=with_limits(settings),
        headers=list(fixed.items()),
        ssl_certfile=tls and tls.cert,
        ssl_keyfile=tls and tls.key,
        ws="websockets-sansio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    await _Server(config, on_started).serve(sockets=[listener])
