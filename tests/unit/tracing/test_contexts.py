"""Trace contexts are passed on as they came, whether or not anybody makes spans of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest
from tests.unit.gpu_worker.bench import held

from vllm_batch import tracing
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.tracing.http import pass_on

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_context_goes_on_in_headers_and_events() -> None:
    assert tracing.headers() == {}
    assert tracing.traceparent() is None
    assert tracing.ids() is None
    with tracing.continued({"traceparent": PARENT, "tracestate": "a=1", "cookie": "no"}):
        assert tracing.headers() == {"traceparent": PARENT, "tracestate": "a=1"}
        assert tracing.ids() == (TRACE, SPAN)
        with tracing.span("nobody makes spans here"):
            assert tracing.traceparent() == PARENT
        with tracing.continued(None):
            assert tracing.headers() == {}
    assert tracing.headers() == {}


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
     f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE[:-1]}-{SPAN}-01",
     PARENT.upper() + "Z", "00-\x00-\xff-01", "a" * 10_000],
)  # fmt: skip
def test_a_context_that_makes_no_sense_is_none(header: str) -> None:
    with tracing.continued({"traceparent": header}):
        assert tracing.headers() == {}
    with tracing.continued(header):
        assert tracing.headers() == {}


async def test_events_carry_the_context_they_were_recorded_in() -> None:
    store = MemoryEventStore()
    with tracing.continued(PARENT):
        chunk = await held(store)
        assert [one.traceparent async for batch in store.read("chunk.>") for one in batch] == [
            PARENT, PARENT,
        ]  # fmt: skip
    assert tracing.headers() == {}

    async def seen() -> str | None:
        return tracing.traceparent()

    loop = asyncio.get_running_loop()
    assert await loop.create_task(seen(), context=chunk.trace.context) == PARENT
    with chunk.trace.current():
        assert tracing.traceparent() == PARENT
    chunk.trace.answered()
    chunk.trace.end("completed")


LOGGING = """
import structlog
from vllm_batch import telemetry, tracing
from vllm_batch.settings import Settings
telemetry.configure_logs(Settings(), service="test")
log = structlog.get_logger()
log.warning("before")
with tracing.continued("PARENT"):
    log.warning("within")
"""


def test_log_lines_carry_the_ids() -> None:
    code = LOGGING.replace("PARENT", PARENT)
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    before, within = (json.loads(line) for line in done.stderr.splitlines())
    assert "trace_id" not in before
    assert (within["event"], within["trace_id"], within["span_id"]) == ("within", TRACE, SPAN)


async def test_calls_of_our_own_services_go_on_in_the_same_trace() -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("traceparent"))
        return httpx.Response(200)

    hooks = {"request": [pass_on]}
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, event_hooks=hooks) as client:
        await client.get("http://gateway/")
        with tracing.continued(PARENT):
            await client.get("http://gateway/")
    assert seen == [None, PARENT]
