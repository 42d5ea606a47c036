"""The bridge's process: connects, serves what Label Studio calls, and does its duties meanwhile.

Any number may run: events are shared out among them, and one of them, the leader, does what has to
be done once: it compares with Label Studio and makes tasks there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from batch_labelstudio import (
    label_studio,
    orders,
    predicting,
    reconciler,
    tasks_out,
    webhooks,
    write_back,
)
from batch_labelstudio.app import create_app
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.feed import ProjectFeed
from batch_labelstudio.model_feed import ModelFeed
from batch_labelstudio.training import duty as training
from batch_labelstudio.validation import duty as validation
from vllm_batch import http_server, ids, tasks, tls
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import BatchError
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import Access
from vllm_batch.messaging.leadership import Leadership
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.exposition import Exposition, exposed
from vllm_batch.metrics.labeling import LabelingMetrics
from vllm_batch.notify import notify
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

SOURCE = "labelstudio-bridge"
RETRY_SECONDS = 1.0

Duty = Callable[[Bridge], Awaitable[None]]

_DUTIES: tuple[Duty, ...] = (
    webhooks.run,
    tasks_out.ask_by_rule,
    write_back.run,
    validation.run,
    orders.run,
    training.run,
)
_DUTIES_OF_THE_LEADER = (reconciler.run, tasks_out.run)


async def lead(bridge: Bridge) -> None:
    """Do what one bridge at a time does, while this one is it."""

    async def duties() -> None:
        await tasks.first_to_end(*(kept(duty, bridge) for duty in _DUTIES_OF_THE_LEADER))

    owner = ids.new("bridge_")
    await Leadership(bridge.store.js, bridge.settings, role=SOURCE, owner=owner).run(duties)


async def kept(duty: Duty, bridge: Bridge) -> None:
    """Do a duty for ever: one that fails, say because NATS went just then, is begun again."""
    while True:
        try:
            await duty(bridge)
        except BatchError as error:
            log.warning("a duty is begun again", duty=duty.__module__, why=str(error))
        except Exception:  # the outermost loop of every duty
            log.exception("a duty failed and is begun again", duty=duty.__module__)
        await asyncio.sleep(RETRY_SECONDS)


@asynccontextmanager
async def connected(settings: Settings, exposition: Exposition) -> AsyncIterator[Bridge]:
    """Yield what routes and duties need; Label Studio may come later.

    Raises:
        EventStoreUnavailable: no NATS server answers.
        BlobError: the blob store cannot be opened.
    """
    blobs, metrics = open_blobs(settings.blob_url), LabelingMetrics(exposition.registry)
    async with (
        jetstream.connect(
            settings,
            source=SOURCE,
            access=Access.READER,
            metrics=EventLogMetrics(exposition.registry),
        ) as store,
        label_studio.connect(settings, metrics) as client,
        predicting.connected(settings) as predictor,
    ):
        feed = ProjectFeed(store)
        models = ModelFeed(store)
        await feed.load()
        await models.load()

        async def measure() -> None:
            store.measure_connection()
            metrics.projects.set(len(feed.projects.all()))

        with exposition.on_scrape(measure):
            yield Bridge(
                settings=settings,
                store=store,
                blobs=blobs,
                label_studio=client,
                feed=feed,
                models=models,
                predictor=predictor,
                clock=SystemClock(),
                metrics=metrics,
            )


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    pair = tls.server_pair(settings.bridge_tls_cert, settings.bridge_tls_key, setting="bridge_tls")
    listener = http_server.listen(
        settings.bridge_host, settings.bridge_port, setting="VLLM_BATCH_BRIDGE_PORT"
    )

    def started() -> None:
        url = http_server.url_of(listener, pair)
        log.info("serving", url=url, label_studio=settings.label_studio_url or "none")
        notify(READY=1, STATUS=f"serving {url}")

    with listener:
        async with (
            exposed(settings, service=SOURCE) as exposition,
            connected(settings, exposition) as bridge,
        ):
            duties = [asyncio.ensure_future(kept(duty, bridge)) for duty in (*_DUTIES, lead)]
            duties.append(asyncio.ensure_future(bridge.feed.follow()))
            duties.append(asyncio.ensure_future(bridge.models.follow()))
            try:
                await http_server.serve(
                    create_app(bridge), listener, settings, on_started=started, tls=pair,
                    headers=http_server.DATA_HEADERS,
                )  # fmt: skip
            finally:
                await tasks.end(*duties)
