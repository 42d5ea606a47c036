"""Sending spans to an OTLP/HTTP receiver, where one is configured.

Spans are sent in batches by a thread of the SDK; a receiver that is away costs spans and nothing
else. Sampling, headers and the like come from OpenTelemetry's own variables (``OTEL_…``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import structlog

from vllm_batch.errors import StackError
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

EXPORT_SECONDS = 3.0
"""At most so long a process is held up at its end by a receiver that does not answer."""
BATCH_MILLISECONDS = 1000.0


@contextmanager
def exporting(settings: Settings, *, service: str) -> Iterator[None]:
    """Make spans and send them while the context lasts; at its end those that wait.

    Raises:
        StackError: there is a receiver, but the extra ``tracing`` is not installed.
    """
    if not settings.otlp_endpoint:
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StackError(
            "traces are to be exported (VLLM_BATCH_OTLP_ENDPOINT), but OpenTelemetry's SDK is not "
            "installed: pip install 'vllm-batch[tracing]'"
        ) from error
    resource = Resource.create(
        {
            "service.namespace": "vllm-batch",
            "service.name": service,
            "service.version": metadata.version("vllm-batch"),
            "service.instance.id": settings.worker_name if service == "gpu-worker" else service,
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=traces_url(settings), timeout=EXPORT_SECONDS)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, schedule_delay_millis=BATCH_MILLISECONDS)
    )
    trace.set_tracer_provider(provider)
    log.info("exporting traces", url=traces_url(settings))
    try:
        yield
    finally:
        provider.shutdown()


def traces_url(settings: Settings) -> str:
    """Return where spans are posted: OTLP/HTTP's path below the base URL."""
    return settings.otlp_endpoint.rstrip("/") + "/v1/traces"
