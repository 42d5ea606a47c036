"""What a scrape shows of GPUs and of vLLM's own load."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from batch_gpu_worker.engines.base import EngineLoad
from batch_gpu_worker.engines.vllm_probes import load_of
from batch_gpu_worker.measuring import GpuMeasuring
from vllm_batch.heartbeats import GpuMetrics
from vllm_batch.metrics.worker import GpuDeviceMetrics

OF_VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 7.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
"""


def test_gpus_in_base_units_and_energy_since_the_first_look() -> None:
    registry = CollectorRegistry()
    measuring = GpuMeasuring(GpuDeviceMetrics(registry))

    def seen(name: str) -> float | None:
        return registry.get_sample_value(f"vllm_batch_gpu_{name}", {"gpu": "0", "name": "H"})

    gpu = GpuMetrics(
        index=0, name="H", memory_used_bytes=5, memory_total_bytes=80, utilization_percent=97,
        temperature_celsius=61, power_watts=350.5, energy_joules=1000.0,
    )  # fmt: skip
    measuring.set([gpu, GpuMetrics(index=1, name="poor")])
    assert (seen("memory_used_bytes"), seen("memory_size_bytes")) == (5, 80)
    assert (seen("utilization_ratio"), seen("temperature_celsius")) == (0.97, 61)
    assert (seen("power_watts"), seen("energy_joules_total")) == (350.5, 0)
    for energy, total in ((1100.0, 100.0), (40.0, 100.0), (50.0, 110.0)):  # the driver was reset
        measuring.set([GpuMetrics(index=0, name="H", energy_joules=energy)])
        assert seen("energy_joules_total") == total
    poor = {"gpu": "1", "name": "poor"}
    assert registry.get_sample_value("vllm_batch_gpu_power_watts", poor) is None


def test_the_load_of_vllm_is_what_it_says() -> None:
    assert load_of(OF_VLLM) == EngineLoad(7, 2, 0.25)
    assert load_of(b"# nothing of the kind\n") is None
