"""Traces: which deed belongs to which, over HTTP, NATS messages, events and engines.

A thin layer over OpenTelemetry's API. Contexts are passed on always, so a client's own
``traceparent`` comes out at the other end; spans are made only where `export.exporting` set an
exporter up. What a process does inside a `span`, its log lines and events included, carries the
span's ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

__all__ = [
    "Span",
    "SpanKind",
    "begin",
    "continued",
    "current",
    "headers",
    "ids",
    "span",
    "traceparent",
]

HEADER_NAMES = ("traceparent", "tracestate")
_SCOPE = "vllm_batch"
_propagator = TraceContextTextMapPropagator()


def headers() -> dict[str, str]:
    """Return the headers that pass the present context on; empty where there is none."""
    carrier: dict[str, str] = {}
    if trace.get_current_span().get_span_context().is_valid:
        _propagator.inject(carrier)
    return carrier


def traceparent() -> str | None:
    """Return the present context as W3C has it; None where there is none."""
    return headers().get("traceparent")


def ids() -> tuple[str, str] | None:
    """Return the ids of the present trace and span in hex; None where there is none."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


@contextmanager
def continued(carrier: Mapping[str, str] | str | None) -> Iterator[None]:
    """Go on in the context that headers, or a traceparent, speak of; in none where they do not.

    What is there but makes no sense counts as nothing: it is never an error.
    """
    given = {"traceparent": carrier} if isinstance(carrier, str) else carrier or {}
    known = {name: given[name] for name in HEADER_NAMES if name in given}
    token = contexts.attach(_propagator.extract(known, contexts.Context()))
    try:
        yield
    finally:
        contexts.detach(token)


@contextmanager
def span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes = None
) -> Iterator[Span]:
    """Do something as a span of the present trace; what is raised is its error."""
    tracer = trace.get_tracer(_SCOPE)
    with tracer.start_as_current_span(name, kind=kind, attributes=attributes) as started:
        yield started


def begin(name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes = None) -> Span:
    """Begin a span of the present trace that somebody else ends; it is not the present one."""
    return trace.get_tracer(_SCOPE).start_span(name, kind=kind, attributes=attributes)


@contextmanager
def current(started: Span) -> Iterator[None]:
    """Do something within a span that goes on afterwards."""
    with trace.use_span(started, record_exception=False, set_status_on_exception=False):
        yield
