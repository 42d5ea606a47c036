"""What the orchestrator measures: the work that is open, and how long its own steps take."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BATCH_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 7 * 24 * 3600)


class OrchestratorMetrics:
    """Gauges are the leader's: a process that stands by shows none of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leader = Gauge(
            "vllm_batch_orchestrator_leader",
            "1 in the orchestrator that leads, 0 in one that stands by.",
            registry=registry,
        )
        self.queued = Gauge(
            "vllm_batch_queued_requests",
            "Requests of batches without a result, by model, whether a worker has them or not.",
            ["model"],
            registry=registry,
        )
        self.chunks = Gauge(
            "vllm_batch_chunks",
            "Chunks that are not done. state: ready (nobody has it) or leased.",
            ["model", "state"],
            registry=registry,
        )
        self.batches = Gauge(
            "vllm_batch_batches",
            "Batches that have not ended, by state.",
            ["state"],
            registry=registry,
        )
        self.oldest_batch = Gauge(
            "vllm_batch_oldest_batch_age_seconds",
            "Time since the oldest batch that has not ended was submitted; 0: there is none.",
            registry=registry,
        )
        self.oldest_lease = Gauge(
            "vllm_batch_oldest_lease_age_seconds",
            "Time since the oldest lease that is in force was taken; 0: there is none.",
            registry=registry,
        )
        self.workers = Gauge(
            "vllm_batch_workers",
            "Workers. state: alive (heard of within lease_seconds) or silent.",
            ["state"],
            registry=registry,
        )
        self.model_workers = Gauge(
            "vllm_batch_model_workers",
            "Live workers that serve a model; 0 for one that has work and no worker.",
            ["model"],
            registry=registry,
        )
        self._measure_steps(registry)

    def _measure_steps(self, registry: CollectorRegistry) -> None:
        self.step_duration = Histogram(
            "vllm_batch_step_duration_seconds",
            "Steps of batches that were taken. step: plan, close_chunks, finalize, write_files.",
            ["step"],
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.step_failures = Counter(
            "vllm_batch_step_failures",
            "Steps of batches that failed and are tried again.",
            ["step"],
            registry=registry,
        )
        self.batch_duration = Histogram(
            "vllm_batch_batch_duration_seconds",
            "From the submission of a batch to its end, by how it ended.",
            ["outcome"],
            buckets=_BATCH_SECONDS,
            registry=registry,
        )
        self.stream_bytes = Gauge(
            "vllm_batch_stream_size_bytes",
            "Size of a JetStream stream on disk.",
            ["stream"],
            registry=registry,
        )
        self.stream_messages = Gauge(
            "vllm_batch_stream_messages",
            "Messages in a JetStream stream.",
            ["stream"],
            registry=registry,
        )


class WebhookMetrics:
    """What the sender of webhooks measures, which runs in the leading orchestrator."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.attempts = Counter(
            "vllm_batch_webhook_attempts",
            "Tries to deliver a webhook. outcome: delivered, refused (by its status) or "
            "unreachable.",
            ["outcome"],
            registry=registry,
        )
        self.duration = Histogram(
            "vllm_batch_webhook_attempt_duration_seconds",
            "Time that a try to deliver a webhook took.",
            registry=registry,
        )
        self.pending = Gauge(
            "vllm_batch_webhook_deliveries_pending",
            "Deliveries that are still to be made.",
            registry=registry,
        )
        self.endpoints = Gauge(
            "vllm_batch_webhook_endpoints",
            "Webhook endpoints. state: enabled or disabled.",
            ["state"],
            registry=registry,
        )
