"""What every part of the bridge works with, and the loop that every duty runs in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry

from batch_labelstudio.feed import ProjectFeed
from batch_labelstudio.label_studio import LabelStudio
from batch_labelstudio.model_feed import ModelFeed
from batch_labelstudio.predicting import Predictor
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import Clock
from vllm_batch.errors import BatchError
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.messaging.event_consumer import EventConsumer, Handler
from vllm_batch.metrics.labeling import LabelingMetrics
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """Everything a route or a duty may use. ``label_studio``: None where none is configured."""

    settings: Settings
    store: JetStreamEventStore
    blobs: BlobStore
    label_studio: LabelStudio | None
    feed: ProjectFeed
    models: ModelFeed
    predictor: Predictor
    clock: Clock
    metrics: LabelingMetrics = field(default_factory=lambda: LabelingMetrics(CollectorRegistry()))

    async def consume(self, name: str, subjects: Sequence[str], handler: Handler) -> None:
        """Hand every event under ``subjects`` to ``handler`` until it is handled, for ever.

        ``name`` is that of the durable consumer, which all bridges share.
        """
        consumer = EventConsumer(self.store.js, name, subjects)
        while True:
            try:
                await consumer.take(handler)
                continue
            except BatchError as error:
                log.warning("later again", duty=name, error=str(error))
            except Exception:  # the outermost loop of this duty
                log.exception("duty failed", duty=name)
                self.metrics.duties.note_failure(name)
            await asyncio.sleep(_RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
