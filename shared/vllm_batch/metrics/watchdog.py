"""What the watchdog measures: workers that are missed, batches that are stuck."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class WatchdogMetrics:
    """Restarts and lost workers are events: ``vllm_batch_events_appended_total`` has them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.workers = Gauge(
            "vllm_batch_watchdog_workers",
            "Worker names. state: present, missed (gone, and nobody meant it) or crash_looping.",
            ["state"],
            registry=registry,
        )
        self.stuck = Gauge(
            "vllm_batch_watchdog_stuck_batches",
            "Open batches that were said to be stuck and have not moved since.",
            registry=registry,
        )
        self.restarts = Counter(
            "vllm_batch_watchdog_restarts",
            "Workers that this watchdog tried to start again. outcome: done or failed.",
            ["outcome"],
            registry=registry,
        )
