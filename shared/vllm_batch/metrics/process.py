"""What is measured of every process of ours, whatever it does."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Info


class ProcessMetrics:
    """Beside these there are the ``process_…`` metrics of prometheus_client itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.build = Info(
            "vllm_batch_build", "The service that this is, and its release.", registry=registry
        )
        self.event_loop_lag = Gauge(
            "vllm_batch_event_loop_lag_seconds",
            "How long the event loop took to turn to this scrape.",
            registry=registry,
        )
        self.refresh_failures = Counter(
            "vllm_batch_metrics_refresh_failures",
            "Times that something could not be measured when Prometheus asked.",
            registry=registry,
        )
