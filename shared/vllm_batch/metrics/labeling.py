"""What the Label Studio bridge measures. Annotations, verdicts and trainings are events: the event
log's own counters have them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from vllm_batch.metrics.duties import DutyMetrics
from vllm_batch.metrics.http import HttpMetrics


class LabelingMetrics:
    """Projects are few and chosen by hand: their number is a label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = HttpMetrics(registry)
        self.duties = DutyMetrics(registry)
        self.label_studio_requests = Counter(
            "vllm_batch_label_studio_requests",
            "Calls of Label Studio's API. outcome: ok, refused (by its status) or unreachable.",
            ["outcome"],
            registry=registry,
        )
        self.projects = Gauge(
            "vllm_batch_labeling_projects",
            "Label Studio projects that are connected.",
            registry=registry,
        )
