"""The admin UI's process: connects what the pages need, serves HTTP, and stops cleanly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import structlog

from batch_admin.app import create_app, pages_open
from batch_admin.live import Live
from batch_admin.services import Services
from batch_admin.today import Today
from vllm_batch import http_server, tasks, tls
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import Access
from vllm_batch.metrics.admin_ui import AdminUiMetrics
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.exposition import Exposition, exposed
from vllm_batch.notify import notify
from vllm_batch.projections.admin_reads import AdminReads
from vllm_batch.settings import Settings
from vllm_batch.tracing.http import pass_on

log = structlog.get_logger(__name__)

SOURCE = "admin-ui"
_GATEWAY_SECONDS = 60.0


@asynccontextmanager
async def connected(settings: Settings, exposition: Exposition) -> AsyncIterator[Services]:
    """Yield what the pages need, connected; Postgres and the gateway may come later.

    Raises:
        EventStoreUnavailable: no NATS server answers.
    """
    clock, metrics = SystemClock(), AdminUiMetrics(exposition.registry)
    key = settings.gateway_api_key.get_secret_value()
    async with (
        jetstream.connect(
            settings,
            source=SOURCE,
            access=Access.READER,
            metrics=EventLogMetrics(exposition.registry),
        ) as store,
        AdminReads.connect(settings) as reads,
        httpx.AsyncClient(
            base_url=settings.gateway_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_GATEWAY_SECONDS,
            trust_env=False,  # no proxy stands between us
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE counts all the same
            event_hooks={"request": [pass_on]},
        ) as gateway,
    ):
        live = Live(store, store.connection.client, clock)
        await live.load()
        following = asyncio.create_task(live.run(), name="follow events and heartbeats")

        async def measure() -> None:
            store.measure_connection()
            metrics.pages_open.set(pages_open())

        try:
            with exposition.on_scrape(measure):
                yield Services(
                    settings=settings,
                    store=store,
                    client=store.connection.client,
                    blobs=open_blobs(settings.blob_url),
                    reads=reads,
                    gateway=gateway,
                    live=live,
                    today=Today(reads, clock),
                    clock=clock,
                    metrics=metrics,
                )
        finally:
            await tasks.end(following)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    pair = tls.server_pair(settings.admin_tls_cert, settings.admin_tls_key, setting="admin_tls")
    listener = http_server.listen(
        settings.admin_host, settings.admin_port, setting="VLLM_BATCH_ADMIN_PORT"
    )
    url = http_server.url_of(listener, pair)

    def started() -> None:
        log.info("serving", url=url)
        notify(READY=1, STATUS=f"serving {url}")

    with listener:
        async with (
            exposed(settings, service=SOURCE) as exposition,
            connected(settings, exposition) as services,
        ):
            app = create_app(services)
            async with app.router.lifespan_context(app):
                await http_server.serve(app, listener, settings, on_started=started, tls=pair)
