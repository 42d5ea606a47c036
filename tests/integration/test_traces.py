"""One trace over processes, by a real OTLP receiver: gateway, NATS, worker, engine, and the log."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from openai import OpenAI
from tests.trace_collector import SeenSpan, TraceCollector

from vllm_batch.event_store import jetstream
from vllm_batch.events import Recorded
from vllm_batch.ids import JobId
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects

CHAT = "/v1/chat/completions"
ANSWER = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


class EngineServer:
    """An OpenAI-compatible server that notes the traceparent of every request."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer({"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server.seen.append(self.headers.get("traceparent"))
                self._answer(ANSWER)

            def _answer(self, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineServer]:
    server = EngineServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceCollector]:
    with TraceCollector().listening() as collector:
        yield collector


@pytest.fixture(scope="module")
def stack(
    engine: EngineServer, collector: TraceCollector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    overrides = {
        "engine_url": engine.url, "model_name": "m", "otlp_endpoint": collector.url,
        "chunk_requests_max": 4,
    }  # fmt: skip
    home = tmp_path_factory.mktemp("traces")
    with LocalStack(home, engine="openai", settings_overrides=overrides) as stack:
        yield stack


@pytest.fixture
def client(stack: LocalStack) -> OpenAI:
    return OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)


def new_context() -> tuple[str, str, dict[str, str]]:
    """Return a trace, the span of a client, and the header that speaks of them."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, {"traceparent": f"00-{trace}-{span}-01"}


def is_one_tree(spans: list[SeenSpan], root: str) -> bool:
    """Tell whether every span hangs on another one of these, or on ``root``."""
    known = {span.span for span in spans} | {root}
    return all(span.parent in known for span in spans)


def run_batch(client: OpenAI, requests: int, headers: dict[str, str]) -> JobId:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    lines = [
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body})
        for n in range(requests)
    ]
    file = client.files.create(file=("a.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", extra_headers=headers
    )
    deadline = time.monotonic() + 120
    while client.batches.retrieve(batch.id).status != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return JobId(batch.id)


async def events_of(stack: LocalStack, job_id: JobId) -> list[Recorded]:
    async with jetstream.connect(stack.settings, source="test") as store:
        return [
            recorded
            for subject in (subjects.job(job_id), subjects.chunks_of(job_id))
            async for batch in store.read(subject)
            for recorded in batch
        ]


def test_a_batch_is_one_trace_from_the_client_to_the_engine_and_back(
    stack: LocalStack, client: OpenAI, collector: TraceCollector, engine: EngineServer
) -> None:
    trace, root, headers = new_context()
    before = len(engine.seen)
    job_id = run_batch(client, 10, headers)
    spans = collector.wait_for(
        trace, lambda found: {"write_files", "chunk"} <= {span.name for span in found}
        and sum(span.name == "chunk" for span in found) == 3 and is_one_tree(found, root),
    )  # fmt: skip
    assert {(span.service, span.name) for span in spans} == {
        ("api", "POST /v1/batches"),
        ("orchestrator", "plan"),
        ("orchestrator", "finalize"),
        ("orchestrator", "write_files"),
        ("gpu-worker", "lease"),
        ("gpu-worker", "chunk"),
        ("gpu-worker", "engine"),
    }
    request = next(span for span in spans if span.service == "api")
    assert request.parent == root
    assert request.attributes["http.response.status_code"] == 200
    chunks = {span.span: span for span in spans if span.name == "chunk"}
    assert {span.attributes["vllm_batch.batch.id"] for span in chunks.values()} == {job_id}
    engines = {span.span: span for span in spans if span.name == "engine"}
    assert {span.parent for span in engines.values()} == chunks.keys()
    told = engine.seen[before:]
    assert len(told) == 10
    for parent in told:
        assert parent is not None
        _, said_trace, said_span, _ = parent.split("-")
        assert (said_trace, said_span in engines) == (trace, True)
    recorded = asyncio.run(events_of(stack, job_id))
    assert {
        "job.submitted",
        "chunk.planned",
        "chunk.leased",
        "chunk.completed",
        "job.completed",
    } <= {one.event.TYPE for one in recorded}
    assert all(one.traceparent is not None for one in recorded), recorded
    known = {span.span for span in spans}
    for one in recorded:
        _, said_trace, said_span, _ = str(one.traceparent).split("-")
        assert (said_trace, said_span in known) == (trace, True), one


def test_an_online_request_is_one_trace(
    client: OpenAI, collector: TraceCollector, engine: EngineServer
) -> None:
    trace, root, headers = new_context()
    client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], extra_headers=headers
    )
    spans = collector.wait_for(trace, lambda found: len(found) == 3)
    assert is_one_tree(spans, root)
    by_name = {span.name: span for span in spans}
    assert [(by_name[name].service, by_name[name].parent) for name in
            (f"POST {CHAT}", "online request", "engine")] == [
        ("api", root),
        ("gpu-worker", by_name[f"POST {CHAT}"].span),
        ("gpu-worker", by_name["online request"].span),
    ]  # fmt: skip
    assert engine.seen[-1] == f"00-{trace}-{by_name['engine'].span}-01"


def test_without_a_context_of_the_client_a_trace_begins_here(
    client: OpenAI, collector: TraceCollector
) -> None:
    client.models.list(extra_headers={"traceparent": "nonsense"})
    deadline = time.monotonic() + 120
    while not (found := [span for span in collector.spans if span.name == "GET /v1/models"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found[0].parent == ""
    assert collector.paths == {"/v1/traces"}


def test_a_client_that_does_not_sample_is_not_traced(
    stack: LocalStack, client: OpenAI, collector: TraceCollector, engine: EngineServer
) -> None:
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-00"}
    job_id = run_batch(client, 1, headers)
    assert engine.seen[-1] is not None
    assert engine.seen[-1].startswith(f"00-{trace}-")
    assert engine.seen[-1].endswith("-00")
    recorded = asyncio.run(events_of(stack, job_id))
    assert all(trace in str(one.traceparent) for one in recorded)
    after, _, headers = new_context()
    run_batch(client, 1, headers)
    collector.wait_for(after, lambda found: any(span.name == "write_files" for span in found))
    assert collector.of_trace(trace) == []


def test_log_lines_of_a_trace_have_its_ids(
    stack: LocalStack, client: OpenAI, collector: TraceCollector
) -> None:
    trace, _, headers = new_context()
    job_id = run_batch(client, 1, headers)
    spans = collector.wait_for(
        trace, lambda found: any(span.name == "write_files" for span in found)
    )
    plan = next(span for span in spans if span.name == "plan")
    log = Path(stack.home.root / "logs" / "orchestrator.log").read_text()
    lines = [json.loads(line[line.index("{") :]) for line in log.splitlines() if job_id in line]
    planned = next(line for line in lines if line["event"] == "job planned")
    assert (planned["trace_id"], planned["span_id"]) == (trace, plan.span)


def test_without_a_receiver_a_clients_context_still_passes_through(
    engine: EngineServer, tmp_path: Path
) -> None:
    overrides = {"engine_url": engine.url, "model_name": "m"}
    only = {"nats", "api", "orchestrator", "worker"}
    with LocalStack(tmp_path, engine="openai", settings_overrides=overrides, only=only) as stack:
        client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        trace, root, headers = new_context()
        job_id = run_batch(client, 2, headers)
        assert engine.seen[-2:] == [headers["traceparent"]] * 2
        recorded = asyncio.run(events_of(stack, job_id))
        assert {one.traceparent for one in recorded} == {headers["traceparent"]}
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], extra_headers=headers
        )
        assert engine.seen[-1] == f"00-{trace}-{root}-01"
        run_batch(client, 1, {})
        assert engine.seen[-1] is None


def test_a_receiver_that_is_away_holds_nobody_up(tmp_path: Path) -> None:
    overrides = {"otlp_endpoint": "http://127.0.0.1:1"}
    only = {"nats", "api", "orchestrator", "worker"}
    with LocalStack(tmp_path, settings_overrides=overrides, only=only) as stack:
        client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        client.chat.completions.create(
            model=stack.model_name, messages=[{"role": "user", "content": "x"}]
        )
        api = stack.service("api")
        api.wait_restarted(api.kill(signal.SIGTERM), 60)
        assert client.models.list().data
