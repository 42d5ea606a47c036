"""What the pages work with, connected once and handed to each."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from nats.aio.client import Client

from batch_admin.live import Live
from batch_admin.today import Today
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import Clock
from vllm_batch.event_store import EventStore
from vllm_batch.metrics.admin_ui import AdminUiMetrics
from vllm_batch.projections.admin_reads import AdminReads
from vllm_batch.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a page may use. ``gateway``: its API, with the key of our services."""

    settings: Settings
    store: EventStore
    client: Client
    blobs: BlobStore
    reads: AdminReads
    gateway: httpx.AsyncClient
    live: Live
    today: Today
    clock: Clock
    metrics: AdminUiMetrics
