"""The API's process: connects what the endpoints need, serves HTTP, and stops cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager

import structlog
import uvicorn

from batch_gateway.api.app import create_app
from batch_gateway.api.authentication import KeyRing
from batch_gateway.api.dependencies import Dependencies
from batch_gateway.api.reads import Reads
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import StackError
from vllm_batch.event_store import jetstream
from vllm_batch.notify import notify
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

SOURCE = "gateway-api"
BACKLOG = 1024
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 3


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


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Dependencies]:
    """Yield what the endpoints need, connected; Postgres may come later.

    Raises:
        EventStoreUnavailable: no NATS server answers.
        BlobError: the blob store cannot be opened.
    """
    clock = SystemClock()
    blobs = open_blobs(settings.blob_url)
    async with (
        jetstream.connect(settings, source=SOURCE) as store,
        ReadModels.connect(settings) as read_models,
    ):
        keys = KeyRing(store)
        await keys.load()
        following = asyncio.create_task(keys.follow(), name="follow API keys")
        try:
            yield Dependencies(
                settings=settings,
                store=store,
                blobs=blobs,
                reads=Reads(store, read_models, settings, clock),
                keys=keys,
                client=store.connection.client,
                clock=clock,
            )
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def listen(settings: Settings) -> socket.socket:
    """Return a socket bound to the API's address; port 0 takes a free one.

    Raises:
        StackError: the address is taken or not ours.
    """
    address = (settings.api_host, settings.api_port)
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise StackError(
            f"cannot listen on {settings.api_host}:{settings.api_port}: {error.strerror}; "
            "choose another port with VLLM_BATCH_API_PORT"
        ) from error


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    listener = listen(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def started() -> None:
        log.info("serving", url=url)
        notify(READY=1, STATUS=f"serving {url}")

    with listener:
        async with connected(settings) as dependencies:
            config = uvicorn.Config(
                create_app(dependencies),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
            await _Server(config, started).serve(sockets=[listener])
