"""Where metrics are served and where traces go."""

from __future__ import annotations

import os

from pydantic import BaseModel, Field


def standard_otlp_endpoint() -> str:
    """Return what OpenTelemetry's own variable says, which counts unless ours says otherwise."""
    return os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")


class ObservabilitySettings(BaseModel):
    """See the module."""

    metrics_host: str = Field("127.0.0.1", description="address of /metrics of every service")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port of /metrics, for Prometheus; 0: any free one, "
        "none: no metrics; the embedded stack gives each service one of its own",
    )  # fmt: skip
    otlp_endpoint: str = Field(
        default_factory=standard_otlp_endpoint,
        description="base URL of an OTLP/HTTP receiver of traces, e.g. http://127.0.0.1:4318; "
        "default: OTEL_EXPORTER_OTLP_ENDPOINT; empty: no traces",
    )
