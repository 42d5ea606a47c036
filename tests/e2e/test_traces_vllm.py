"""A trace goes on inside real vLLM: its own spans hang on ours."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import openai
import pytest
from tests.e2e.conftest import Round, jsonl
from tests.trace_collector import TraceCollector

from vllm_batch.local.stack import LocalStack

ARGUMENTS = ("--enforce-eager", "--max-model-len", "1024")


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceCollector]:
    with TraceCollector().listening() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: TraceCollector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    home = tmp_path_factory.mktemp("traced") / "stack"
    overrides = {"engine_args": ARGUMENTS, "otlp_endpoint": collector.url}
    with LocalStack(home, engine="vllm", settings_overrides=overrides) as stack:
        client = openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        with client:
            yield Round(stack, client)


@pytest.mark.timeout(600)
def test_vllm_goes_on_in_the_trace_of_an_online_request_and_of_a_batch(
    traced: Round, collector: TraceCollector
) -> None:
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    traced.client.chat.completions.create(
        model=traced.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=4,
        extra_headers=headers,
    )  # fmt: skip
    spans = collector.wait_for(
        trace,
        lambda found: (
            "vllm" in {span.service for span in found} and "engine" in {span.name for span in found}
        ),
    )
    engine = next(span for span in spans if span.name == "engine")
    inside = [span for span in spans if span.service == "vllm"]
    assert engine.span in {span.parent for span in inside}

    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    file = traced.client.files.create(
        file=("in.jsonl", jsonl([traced.line(f"r{n}") for n in range(3)])), purpose="batch"
    )
    batch = traced.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
        extra_headers=headers,
    )  # fmt: skip
    assert traced.wait(batch, seconds=240).status == "completed"
    spans = collector.wait_for(
        trace,
        lambda found: (
            sum(span.service == "vllm" for span in found) >= 3
            and {"write_files", "chunk", "engine"} <= {span.name for span in found}
        ),
    )
    engine = next(span for span in spans if span.name == "engine")
    requests = [span for span in spans if span.parent == engine.span]
    assert len(requests) == 3
    assert {span.service for span in requests} == {"vllm"}
    assert all(span.attributes["gen_ai.usage.completion_tokens"] > 0 for span in requests)
