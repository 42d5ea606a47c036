"""How ``worker status`` looks: a table of workers and one of queues; tab-separated in a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_batch.cli.listing import print_rows

if TYPE_CHECKING:
    from vllm_batch.fleet_report import QueueReport, WorkerReport
    from vllm_batch.heartbeats import GpuMetrics

_GIB = 1024**3
_COLUMNS = (
    "worker", "state", "host", "pid", "model", "in flight", "tokens/s", "heartbeat", "GPU memory",
    "util", "temp",
)  # fmt: skip


def show(workers: list[WorkerReport], queues: list[QueueReport]) -> None:
    """Print both tables."""
    if not workers:
        print("no workers")
    print_rows(_COLUMNS, (_row(worker) for worker in workers))
    if queues:
        print()
        print_rows(
            ("model", "batches", "requests left", "chunks waiting", "chunks leased"),
            (
                (
                    queue.model, str(queue.batches), str(queue.requests),
                    str(queue.chunks_ready), str(queue.chunks_leased),
                )
                for queue in queues
            ),
        )  # fmt: skip


def _row(worker: WorkerReport) -> tuple[str, ...]:
    age = worker.heartbeat_age_seconds
    state = worker.state if worker.reason is None else f"{worker.state} ({worker.reason})"
    return (
        worker.name,
        state,
        worker.host,
        str(worker.pid),
        ", ".join(worker.models) or "-",
        "-" if worker.in_flight is None else f"{worker.in_flight}/{worker.in_flight_max}",
        _number(worker.output_tokens_per_second),
        "-" if age is None else f"{age:.1f} s ago",
        "; ".join(_memory(gpu) for gpu in worker.gpus) or "-",
        "; ".join(_shown(gpu.utilization_percent, "%") for gpu in worker.gpus) or "-",
        "; ".join(_shown(gpu.temperature_celsius, " °C") for gpu in worker.gpus) or "-",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _memory(gpu: GpuMetrics) -> str:
    if gpu.memory_used_bytes is None or gpu.memory_total_bytes is None:
        return "?"
    return f"{gpu.memory_used_bytes / _GIB:.1f}/{gpu.memory_total_bytes / _GIB:.0f} GiB"


def _shown(value: int | None, unit: str) -> str:
    return "?" if value is None else f"{value}{unit}"
