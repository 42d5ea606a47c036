"""What the gateway's API measures: online requests, and how far behind its lists are."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vllm_batch.metrics.http import HttpMetrics

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)


class ApiMetrics:
    """``model`` is one that is served; a name that nobody knows is refused before."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = HttpMetrics(registry)
        self.online = Counter(
            "vllm_batch_online_requests",
            "Online requests that are over. outcome: ok, left (the client went) or an error code.",
            ["model", "endpoint", "outcome"],
            registry=registry,
        )
        self.first_token = Histogram(
            "vllm_batch_online_time_to_first_token_seconds",
            "Of streamed online requests: from the request to the first piece of the answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.online_duration = Histogram(
            "vllm_batch_online_request_duration_seconds",
            "Of online requests that were answered: from the request to the end of the answer.",
            ["model", "endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "vllm_batch_online_tokens",
            "Tokens of online requests, as the engine says. kind: input or output.",
            ["model", "kind"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "vllm_batch_online_requests_in_flight",
            "Online requests that workers have, or are being offered.",
            registry=registry,
        )
        self.postgres_up = Gauge(
            "vllm_batch_postgres_up",
            "1 while the read models answer, else 0: then lists answer 503, and all else works.",
            registry=registry,
        )
        self.projection_lag = Gauge(
            "vllm_batch_projection_lag_events",
            "Events of the log that are not in the read models yet. NaN while Postgres is away.",
            registry=registry,
        )
        self.disk_free = Gauge(
            "vllm_batch_blob_disk_free_bytes",
            "Free space where files and results are. Only where that is a local directory.",
            registry=registry,
        )
        self.disk_size = Gauge(
            "vllm_batch_blob_disk_size_bytes",
            "Size of the file system where files and results are. Only where it is local.",
            registry=registry,
        )
