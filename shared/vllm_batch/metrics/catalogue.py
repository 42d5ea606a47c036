"""Every metric of every service as data, and as the table of ``shared/docs/observability.md``.

``python -m vllm_batch.metrics.catalogue`` prints the table; a test holds the document to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from vllm_batch.metrics.admin_ui import AdminUiMetrics
from vllm_batch.metrics.api import ApiMetrics
from vllm_batch.metrics.duties import DutyMetrics
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.labeling import LabelingMetrics
from vllm_batch.metrics.orchestrator import OrchestratorMetrics, WebhookMetrics
from vllm_batch.metrics.process import ProcessMetrics
from vllm_batch.metrics.watchdog import WatchdogMetrics
from vllm_batch.metrics.worker import EngineMetrics, GpuDeviceMetrics, WorkerMetrics

_EVERY: tuple[Callable[[CollectorRegistry], object], ...] = (ProcessMetrics, EventLogMetrics)
SERVICES: dict[str, tuple[Callable[[CollectorRegistry], object], ...]] = {
    "every service": _EVERY,
    "api": (ApiMetrics,),
    "orchestrator": (OrchestratorMetrics, WebhookMetrics, DutyMetrics),
    "gpu-worker": (WorkerMetrics, EngineMetrics, GpuDeviceMetrics),
    "watchdog": (WatchdogMetrics, DutyMetrics),
    "labelstudio-bridge": (LabelingMetrics,),
    "admin-ui": (AdminUiMetrics,),
}
_HEADINGS = ("| metric | kind | labels | what |", "|---|---|---|---|")
_SUFFIXES = {"counter": "_total", "info": "_info"}


class Described(NamedTuple):
    """A metric under the name that queries use; ``kind``: counter, gauge, histogram or info."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def described(service: str) -> list[Described]:
    """Return the metrics that a service has beside those of every service."""
    registry = CollectorRegistry()
    found = [metric for kind in SERVICES[service] for metric in _metrics_in(kind(registry))]
    return [
        Described(
            metric._name + _SUFFIXES.get(str(metric._type), ""),
            str(metric._type),
            tuple(metric._labelnames),
            metric._documentation,
        )
        for metric in found
    ]


def _metrics_in(holder: object) -> Iterator[MetricWrapperBase]:
    for value in vars(holder).values():
        if isinstance(value, MetricWrapperBase):
            yield value
        elif type(value).__module__.startswith("vllm_batch.metrics."):
            yield from _metrics_in(value)


def as_markdown() -> str:
    """Return a table per service."""
    parts = []
    for service in SERVICES:
        rows = [
            f"| `{one.name}` | {one.kind} | {', '.join(one.labels)} | {one.text} |"
            for one in described(service)
        ]
        head = f"### {service[0].upper() + service[1:] if ' ' in service else service}\n"
        parts.append("\n".join([head, *_HEADINGS, *rows]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
