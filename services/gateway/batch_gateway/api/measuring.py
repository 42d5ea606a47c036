"""What the API looks at when Prometheus asks: its read models, its disk, its online requests."""

from __future__ import annotations

import asyncio
import math

from batch_gateway.api.dependencies import Dependencies
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store.jetstream import JetStreamEventStore

LOG_SECONDS = 1.0


class ApiMeasuring:
    """See `exposition.Exposition.on_scrape`."""

    def __init__(self, api: Dependencies, store: JetStreamEventStore) -> None:
        self._api = api
        self._store = store

    async def refresh(self) -> None:
        """Bring the gauges up to date."""
        api, metrics = self._api, self._api.metrics
        self._store.measure_connection()
        metrics.in_flight.set(api.online.switchboard.in_flight if api.online else 0)
        disk = api.blobs.disk_usage()
        if disk is not None:
            metrics.disk_free.set(disk.free)
            metrics.disk_size.set(disk.total)
        metrics.postgres_up.set(api.reads.lists.available)
        metrics.projection_lag.set(await self._lag())

    async def _lag(self) -> float:
        lists = self._api.reads.lists
        if not lists.available:
            return math.nan
        try:
            async with asyncio.timeout(LOG_SECONDS):
                last = await self._store.last_sequence()
        except (EventStoreUnavailable, TimeoutError):
            return math.nan
        return max(0, last - max(lists.seq, 0))
