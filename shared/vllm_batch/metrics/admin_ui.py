"""What the admin UI measures: who is there, and who tried to come in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from vllm_batch.metrics.http import HttpMetrics


class AdminUiMetrics:
    """No label names a user."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = HttpMetrics(registry)
        self.sign_ins = Counter(
            "vllm_batch_admin_sign_ins",
            "Tries to sign in. outcome: ok, wrong (name or password), throttled or forged.",
            ["outcome"],
            registry=registry,
        )
        self.pages_open = Gauge(
            "vllm_batch_admin_pages_open",
            "Pages that are open in browsers.",
            registry=registry,
        )
