"""What is measured of duties: loops of a service that are to run for ever."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class DutyMetrics:
    """Of any service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.failures = Counter(
            "vllm_batch_duty_failures",
            "Times that a duty of a service failed unforeseen and began anew.",
            ["duty"],
            registry=registry,
        )

    def note_failure(self, duty: str) -> None:
        """Count a failure."""
        self.failures.labels(duty).inc()
