"""``/metrics`` of a process: a small HTTP server on a thread, and what is measured on demand.

Most numbers are only looked at when somebody asks: a service registers a coroutine that brings its
gauges up to date on the event loop, and pays nothing between scrapes. A loop that does not turn
makes the scrape fail, which is what Prometheus should see.
"""

from __future__ import annotations

import asyncio
import contextlib
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from importlib import metadata

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from vllm_batch.metrics.process import ProcessMetrics
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

SCRAPE_SECONDS = 8.0
"""Below Prometheus's own default limit of 10 s, so that it hears why."""
REQUEST_SECONDS = 10.0

Refresh = Callable[[], Awaitable[None]]


class Exposition:
    """A process's registry, and what brings it up to date. ``port`` is None where none listens."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.process = ProcessMetrics(self.registry)
        self.process.build.info({"service": service, "version": metadata.version("vllm-batch")})
        self.port: int | None = None
        self._refreshes: list[Refresh] = []
        self._one_at_a_time = threading.Lock()

    @contextlib.contextmanager
    def on_scrape(self, refresh: Refresh) -> Iterator[None]:
        """Have ``refresh`` called on the event loop before each answer, while the context lasts."""
        self._refreshes.append(refresh)
        try:
            yield
        finally:
            self._refreshes.remove(refresh)

    def scrape(self, loop: asyncio.AbstractEventLoop, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text and its content type. Called from another thread.

        Raises:
            TimeoutError: the event loop does not turn, or a refresh takes too long.
        """
        with self._one_at_a_time:
            asked = time.monotonic()
            refreshed = asyncio.run_coroutine_threadsafe(self._refresh(asked), loop)
            try:
                refreshed.result(SCRAPE_SECONDS)
            except TimeoutError:
                refreshed.cancel()
                raise
            encode, content_type = choose_encoder(accept)
            return encode(self.registry), content_type

    async def _refresh(self, asked: float) -> None:
        self.process.event_loop_lag.set(time.monotonic() - asked)
        for refresh in tuple(self._refreshes):
            try:
                await refresh()
            except Exception:  # one source that is away must not hide the others
                log.exception("not measured", source=getattr(refresh, "__qualname__", ""))
                self.process.refresh_failures.inc()


class _Handler(BaseHTTPRequestHandler):
    """Answers ``GET /metrics``."""

    timeout = REQUEST_SECONDS
    protocol_version = "HTTP/1.1"

    def __init__(self, exposition: Exposition, loop: asyncio.AbstractEventLoop, *rest: object):
        self._exposition = exposition
        self._loop = loop
        super().__init__(*rest)  # type: ignore[arg-type] # request, address, server

    def do_GET(self) -> None:
        """Answer."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, b"The metrics are at /metrics.\n")
            return
        try:
            body, content_type = self._exposition.scrape(self._loop, self.headers.get("accept", ""))
        except TimeoutError:
            self._answer(503, b"The event loop of this service does not turn.\n")
        except (RuntimeError, CancelledError):  # the loop ends just now
            self._answer(503, b"This service is ending.\n")
        else:
            self._answer(200, body, content_type)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: Prometheus asks several times a minute."""


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that goes away in mid-answer is nothing to tell."""
        log.debug("a scrape broke off", exc_info=True)


@asynccontextmanager
async def exposed(settings: Settings, *, service: str) -> AsyncIterator[Exposition]:
    """Yield the process's exposition, served while the context lasts if there is a metrics_port.

    A port that is taken is logged, and the service does its work without: being looked at must
    never be what stops it.
    """
    exposition = Exposition(service)
    if settings.metrics_port is None:
        yield exposition
        return
    handler = partial(_Handler, exposition, asyncio.get_running_loop())
    address = (settings.metrics_host, settings.metrics_port)
    try:
        server = _Server(address, handler)
    except OSError as error:
        log.error(
            "no metrics: cannot listen; choose another VLLM_BATCH_METRICS_PORT",
            host=address[0], port=address[1], error=str(error),
        )  # fmt: skip
        yield exposition
        return
    exposition.port = int(server.server_address[1])
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
    )
    thread.start()
    log.info("metrics", url=f"http://{address[0]}:{exposition.port}/metrics")
    try:
        yield exposition
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
