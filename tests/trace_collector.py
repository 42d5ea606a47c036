"""An OTLP/HTTP receiver on loopback: takes what OpenTelemetry's exporters post and decodes it."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class SeenSpan(NamedTuple):
    """A span as it was posted; ids in hex, ``parent`` is empty for a root."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]


class TraceCollector:
    """Keeps every span that was posted to ``url``/v1/traces."""

    def __init__(self) -> None:
        self.spans: list[SeenSpan] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.paths.add(self.path)
                collector.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def listening(self) -> Iterator[TraceCollector]:
        """Receive while the context lasts."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of one post."""
        for resource in request.resource_spans:
            of_process = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [
                    SeenSpan(
                        str(of_process["service.name"]), span.name, span.trace_id.hex(),
                        span.span_id.hex(), span.parent_span_id.hex(),
                        _attributes(span.attributes),
                    )
                    for span in scope.spans
                ]  # fmt: skip

    def of_trace(self, trace: str) -> list[SeenSpan]:
        """Return the spans of one trace so far."""
        return [span for span in self.spans if span.trace == trace]

    def wait_for(
        self, trace: str, met: Callable[[list[SeenSpan]], bool], seconds: float = 30
    ) -> list[SeenSpan]:
        """Wait until the spans of a trace are what they should be."""
        deadline = time.monotonic() + seconds
        while not met(found := self.of_trace(trace)):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found


def _attributes(given: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in given}
