"""What the watchdog looks at when Prometheus asks: the fleet, and the batches that are stuck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batch_watchdog.open_jobs import OpenJobs
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.fleet import Fleet
from vllm_batch.metrics.duties import DutyMetrics
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.exposition import Exposition
from vllm_batch.metrics.watchdog import WatchdogMetrics


class Measuring:
    """The process's metrics, which outlive a connection."""

    def __init__(self, exposition: Exposition) -> None:
        self.event_log = EventLogMetrics(exposition.registry)
        self.watchdog = WatchdogMetrics(exposition.registry)
        self.duties = DutyMetrics(exposition.registry)
        self._exposition = exposition

    @contextmanager
    def watching(self, fleet: Fleet, jobs: OpenJobs, store: JetStreamEventStore) -> Iterator[None]:
        """Measure while the context lasts."""

        async def refresh() -> None:
            store.measure_connection()
            measure(self.watchdog, fleet, jobs)

        try:
            with self._exposition.on_scrape(refresh):
                yield
        finally:
            self.event_log.connected.set(0)
            self.watchdog.workers.clear()
            self.watchdog.stuck.set(0)


def measure(metrics: WatchdogMetrics, fleet: Fleet, jobs: OpenJobs) -> None:
    """Set what the log says of workers and batches."""
    counts = {"present": 0, "missed": 0, "crash_looping": 0}
    for name in fleet.names.values():
        if name.crash_looping:
            counts["crash_looping"] += 1
        elif name.newest.missed:
            counts["missed"] += 1
        elif name.newest.ended_at is None:
            counts["present"] += 1
    for state, count in counts.items():
        metrics.workers.labels(state).set(count)
    metrics.stuck.set(sum(watch.told is not None for watch in jobs.jobs.values()))
