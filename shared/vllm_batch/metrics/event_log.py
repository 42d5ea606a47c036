"""What is measured of the event log by whoever appends to it, and of its connection."""

from __future__ import annotations

import time
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vllm_batch.errors import Conflict, EventStoreUnavailable

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15)


class EventLogMetrics:
    """Facts counted where they are recorded: what happens in the system is an event."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.appended = Counter(
            "vllm_batch_events_appended",
            "Events that this process recorded, by type: job.completed, worker.lost and so on.",
            ["type"],
            registry=registry,
        )
        self.failures = Counter(
            "vllm_batch_event_append_failures",
            "Appends that were not made: conflict (another was faster), refused or unavailable.",
            ["reason"],
            registry=registry,
        )
        self.duration = Histogram(
            "vllm_batch_event_append_duration_seconds",
            "From the wish to record an event to the acknowledgement by the event log.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.connected = Gauge(
            "vllm_batch_nats_connected",
            "1 while this process has a connection to NATS, else 0.",
            registry=registry,
        )

    def appending(self, event_type: str) -> _Append:
        """Return a context for one append: times it and counts how it ended."""
        return _Append(self, event_type)


class _Append:
    """A class of its own, as a generator costs several times as much."""

    __slots__ = ("_began", "_event_type", "_metrics")

    def __init__(self, metrics: EventLogMetrics, event_type: str) -> None:
        self._metrics = metrics
        self._event_type = event_type

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._metrics.appended.labels(self._event_type).inc()
            self._metrics.duration.observe(time.monotonic() - self._began)
        elif isinstance(error, Conflict):
            self._metrics.failures.labels("conflict").inc()
        elif isinstance(error, EventStoreUnavailable):
            self._metrics.failures.labels("unavailable").inc()
        elif isinstance(error, Exception):
            self._metrics.failures.labels("refused").inc()
