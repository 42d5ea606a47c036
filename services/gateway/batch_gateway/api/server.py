"""The API's process: connects what the endpoints need, serves HTTP, and stops cleanly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from batch_gateway.api.app import create_app
from batch_gateway.api.authentication import KeyRing
from batch_gateway.api.dependencies import Dependencies
from batch_gateway.api.inference_calls import OnlineWork, Switchboard
from batch_gateway.api.measuring import ApiMeasuring
from batch_gateway.api.model_names import ModelNames
from batch_gateway.api.rate_sharing import RateSharing
from batch_gateway.api.reads import Reads
from vllm_batch import http_server, project_limits, tasks, tls
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.folds import keep_up
from vllm_batch.event_store.starts import sequence_before
from vllm_batch.messaging import subjects
from vllm_batch.metrics.api import ApiMetrics
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.exposition import Exposition, exposed
from vllm_batch.notify import notify
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

SOURCE = "gateway-api"


@asynccontextmanager
async def connected(
    settings: Settings, exposition: Exposition | None = None
) -> AsyncIterator[Dependencies]:
    """Yield what the endpoints need, connected; Postgres may come later.

    Raises:
        EventStoreUnavailable: no NATS server answers.
        BlobError: the blob store cannot be opened.
    """
    exposition = exposition or Exposition("api")
    clock = SystemClock()
    blobs = open_blobs(settings.blob_url)
    async with (
        jetstream.connect(
            settings, source=SOURCE, metrics=EventLogMetrics(exposition.registry)
        ) as store,
        ReadModels.connect(settings) as read_models,
    ):
        keys = KeyRing(store)
        await keys.load()
        limits = await project_limits.load(store, settings)
        following = [
            asyncio.create_task(keys.follow(), name="follow API keys"),
            asyncio.create_task(
                keep_up(store, subjects.ALL_PROJECTS, limits), name="follow projects"
            ),
        ]
        client = store.connection.client
        names = ModelNames(client, clock, settings.lease_seconds)
        switchboard = Switchboard(client, names, settings)
        try:
            async with names.following(store), switchboard.listening():
                dependencies = Dependencies(
                    settings=settings,
                    store=store,
                    blobs=blobs,
                    reads=Reads(store, read_models, settings, clock),
                    keys=keys,
                    limits=limits,
                    client=client,
                    online=OnlineWork(switchboard, names),
                    clock=clock,
                    metrics=ApiMetrics(exposition.registry),
                )
                uploads = dependencies.open_uploads
                begin = clock.now() - timedelta(seconds=settings.upload_expiry_seconds)
                uploads.position = await sequence_before(store, begin)
                follow_uploads = keep_up(store, subjects.ALL_UPLOADS, uploads)
                following.append(asyncio.create_task(follow_uploads, name="follow uploads"))
                measuring = ApiMeasuring(dependencies, store)
                sharing = RateSharing(
                    client, dependencies.rates, limits, settings.rate_share_seconds
                )
                with exposition.on_scrape(measuring.refresh):
                    async with dependencies.meter.recording(), sharing.running():
                        yield dependencies
        finally:
            await tasks.end(*following)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    pair = tls.server_pair(settings.api_tls_cert, settings.api_tls_key, setting="api_tls")
    listener = http_server.listen(
        settings.api_host, settings.api_port, setting="VLLM_BATCH_API_PORT"
    )
    url = f"{http_server.url_of(listener, pair)}/v1"

    def started() -> None:
        log.info("serving", url=url)
        notify(READY=1, STATUS=f"serving {url}")

    with listener:
        async with (
            exposed(settings, service="api") as exposition,
            connected(settings, exposition) as dependencies,
        ):
            await http_server.serve(
                create_app(dependencies),
                listener,
                settings,
                on_started=started,
                tls=pair,
                shutdown_seconds=settings.api_shutdown_seconds,
            )
