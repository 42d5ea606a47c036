"""A bridge on a log in memory, beside a Label Studio that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
from prometheus_client import CollectorRegistry

from batch_labelstudio.bridge import Bridge
from batch_labelstudio.feed import ProjectFeed
from batch_labelstudio.label_studio import LabelStudio
from batch_labelstudio.model_feed import ModelFeed
from batch_labelstudio.predicting import Predictor
from vllm_batch import tasks
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import Clock, SystemClock
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.metrics.labeling import LabelingMetrics
from vllm_batch.settings import Settings

Answers = Callable[[httpx.Request], httpx.Response]


def label_studio_of(client: httpx.AsyncClient, api_key: str = "token") -> LabelStudio:
    """Return the bridge's client of a Label Studio."""
    calls = LabelingMetrics(CollectorRegistry()).label_studio_requests
    return LabelStudio(client, api_key, page_tasks=100, calls=calls)


@asynccontextmanager
async def bridge_of(
    store: MemoryEventStore,
    folder: Path,
    answers: Answers,
    *,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncIterator[Bridge]:
    """Yield a bridge that follows ``store``; ``answers`` is Label Studio and the gateway too."""
    given = Settings(home=folder, **settings)
    feed, models = ProjectFeed(store), ModelFeed(store)
    await feed.load()
    await models.load()
    transport = httpx.MockTransport(answers)
    async with httpx.AsyncClient(transport=transport, base_url="http://there") as client:
        following = [asyncio.create_task(one.follow()) for one in (feed, models)]
        try:
            yield Bridge(
                settings=given,
                store=cast("JetStreamEventStore", store),
                blobs=open_blobs(f"file://{folder}"),
                label_studio=label_studio_of(client),
                feed=feed,
                models=models,
                predictor=Predictor(client, given),
                clock=clock or SystemClock(),
            )
        finally:
            await tasks.end(*following)
