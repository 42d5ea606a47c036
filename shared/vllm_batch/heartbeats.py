"""What a worker says of itself every few seconds, on ``worker.heartbeat.<worker>``: telemetry, not
facts."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from vllm_batch.ids import WorkerId


class GpuMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU, as NVML sees it. None: the driver does not say. ``energy_joules``: what it has drawn
    since the driver was loaded."""

    index: int
    name: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    energy_joules: float | None = None


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's state now. Rates are means since the last heartbeat.

    ``engine_progress_age_seconds`` counts from the last new token or finished request while
    something runs, 0 when nothing does. ``log_errors`` and ``log_warnings`` count since the start.
    """

    worker_id: WorkerId
    name: str
    host: str
    pid: int
    time: datetime
    state: Literal["starting", "ready", "draining", "failed"]
    engine: str
    engine_pid: int | None = None
    models: list[str] = []
    in_flight: int = 0
    in_flight_max: int = 0
    online_in_flight: int = 0
    leases: int = 0
    requests_per_second: float = 0.0
    output_tokens_per_second: float = 0.0
    rss_bytes: int = 0
    engine_rss_bytes: int = 0
    engine_progress_age_seconds: float = 0.0
    engine_restarts: int = 0
    max_num_seqs: int = 0
    log_errors: int = 0
    log_warnings: int = 0
    gpus: list[GpuMetrics] = []
