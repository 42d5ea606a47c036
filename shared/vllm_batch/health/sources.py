"""Where the checks look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from vllm_batch.blobs import BlobStore
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Sources:
    """``checkpoint`` returns the sequence that the read models have reached, None while Postgres
    is away or empty."""

    store: JetStreamEventStore
    blobs: BlobStore
    settings: Settings
    now: datetime
    checkpoint: Callable[[], Awaitable[int | None]]
