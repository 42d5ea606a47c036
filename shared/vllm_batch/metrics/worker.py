"""What a GPU worker measures: throughput, its engine, its GPUs, and what it has not handed in."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vllm_batch.events import Usage
from vllm_batch.segments import Result

_FLUSH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class WorkerMetrics:
    """Work of batches is counted when it is handed in, a flush at a time: a request costs
    nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "vllm_batch_worker_requests",
            "Requests of batches whose result is recorded. outcome: completed or failed.",
            ["model", "outcome"],
            registry=registry,
        )
        self.tokens = Counter(
            "vllm_batch_worker_tokens",
            "Tokens of batch requests that completed. kind: input, cached_input (of these), "
            "output.",
            ["model", "kind"],
            registry=registry,
        )
        self.request_errors = Counter(
            "vllm_batch_worker_request_errors",
            "Requests of batches that failed, by kind: a code of ours, or http_ and the status.",
            ["kind"],
            registry=registry,
        )
        self.flush_duration = Histogram(
            "vllm_batch_worker_flush_duration_seconds",
            "Time that a checkpoint took: segments stored and recorded.",
            buckets=_FLUSH_SECONDS,
            registry=registry,
        )
        self.segment_bytes = Counter(
            "vllm_batch_worker_segment_bytes",
            "Bytes of result segments that were stored.",
            registry=registry,
        )
        self.handing_in_failures = Counter(
            "vllm_batch_worker_flush_failures",
            "Times that results could not be handed in and had to wait.",
            registry=registry,
        )
        self.leases_lost = Counter(
            "vllm_batch_worker_leases_lost",
            "Chunks whose lease was over before they were done.",
            registry=registry,
        )
        self._measure_present(registry)

    def _measure_present(self, registry: CollectorRegistry) -> None:
        self.online = Counter(
            "vllm_batch_worker_online_requests",
            "Online requests that this worker took, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self.state = Gauge(
            "vllm_batch_worker_requests_in_flight",
            "Requests that this worker works on. kind: batch or online.",
            ["kind"],
            registry=registry,
        )
        self.in_flight_max = Gauge(
            "vllm_batch_worker_requests_in_flight_limit",
            "Requests of batches that the worker gives its engine at once, at most.",
            registry=registry,
        )
        self.waiting = Gauge(
            "vllm_batch_worker_requests_waiting",
            "Requests of leased chunks that have not begun.",
            registry=registry,
        )
        self.chunks = Gauge(
            "vllm_batch_worker_chunks_leased",
            "Chunks that this worker holds.",
            registry=registry,
        )
        self.undurable = Gauge(
            "vllm_batch_worker_results_waiting",
            "Results that are not handed in yet: what a crash would cost.",
            registry=registry,
        )

    def count(self, model: str, results: Sequence[Result], usage: Usage) -> None:
        """Count results that are recorded now."""
        if not results:
            return
        failed = sum(result.failed for result in results)
        self.requests.labels(model, "completed").inc(len(results) - failed)
        self.requests.labels(model, "failed").inc(failed)
        self.tokens.labels(model, "input").inc(usage.input_tokens)
        self.tokens.labels(model, "cached_input").inc(usage.cached_tokens)
        self.tokens.labels(model, "output").inc(usage.output_tokens)


class EngineMetrics:
    """The engine as the worker sees it, and what it says of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = Gauge(
            "vllm_batch_engine_ready",
            "1 while the engine takes requests, else 0.",
            registry=registry,
        )
        self.restarts = Counter(
            "vllm_batch_engine_restarts",
            "Engines that ended, by reason: crashed, frozen, out_of_memory and so on.",
            ["reason"],
            registry=registry,
        )
        self.progress_age = Gauge(
            "vllm_batch_engine_progress_age_seconds",
            "Time since the engine's last token or answer while it holds requests, else 0.",
            registry=registry,
        )
        self.resident = Gauge(
            "vllm_batch_engine_resident_memory_bytes",
            "Host memory of the engine's processes.",
            registry=registry,
        )
        self.sequences_max = Gauge(
            "vllm_batch_engine_sequences_limit",
            "Requests that the engine runs at once, at most.",
            registry=registry,
        )
        self.requests = Gauge(
            "vllm_batch_engine_requests",
            "Requests in the engine, as it says itself. state: running or waiting. vLLM only.",
            ["state"],
            registry=registry,
        )
        self.kv_cache = Gauge(
            "vllm_batch_engine_kv_cache_usage_ratio",
            "Share of the engine's KV cache that is in use. vLLM only.",
            registry=registry,
        )


class GpuDeviceMetrics:
    """GPUs as NVML sees them; ``gpu`` is their index."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["gpu", "name"]
        self.memory_used = Gauge(
            "vllm_batch_gpu_memory_used_bytes", "GPU memory in use.", labels, registry=registry
        )
        self.memory_size = Gauge(
            "vllm_batch_gpu_memory_size_bytes", "GPU memory there is.", labels, registry=registry
        )
        self.utilization = Gauge(
            "vllm_batch_gpu_utilization_ratio",
            "Share of the time in which the GPU computed anything.",
            labels,
            registry=registry,
        )
        self.temperature = Gauge(
            "vllm_batch_gpu_temperature_celsius", "GPU temperature.", labels, registry=registry
        )
        self.power = Gauge(
            "vllm_batch_gpu_power_watts", "GPU power draw.", labels, registry=registry
        )
        self.energy = Counter(
            "vllm_batch_gpu_energy_joules",
            "Energy that the GPU used since this worker started.",
            labels,
            registry=registry,
        )
