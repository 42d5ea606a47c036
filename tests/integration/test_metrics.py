"""Metrics of a real stack, scraped from every service and read with Prometheus's own parser."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from vllm_batch.cli.status import as_data
from vllm_batch.local import state
from vllm_batch.local.stack import ALL_ROLES, LocalStack
from vllm_batch.metrics.catalogue import SERVICES, described

REQUESTS = 60
BAD = 3
CHAT = "/v1/chat/completions"
KIND = {"worker-1": "gpu-worker"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack that has done a batch, with some errors, and online requests."""
    only = ALL_ROLES - {"trainer"}
    with LocalStack(tmp_path_factory.mktemp("metrics"), only=only) as stack:
        client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        run_batch(client, stack.model_name)
        for stream in (False, True, True):
            answer = client.chat.completions.create(
                model=stack.model_name,
                messages=[{"role": "user", "content": "Hello"}],
                stream=stream,
                **({"stream_options": {"include_usage": True}} if stream else {}),
            )  # type: ignore[call-overload]
            if stream:
                assert list(answer)
        yield stack


def run_batch(client: OpenAI, model: str) -> None:
    lines = []
    for number in range(REQUESTS):
        content = "[[sim:422]]" if number < BAD else "Hello"
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        line = {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}
        lines.append(json.dumps(line))
    file = client.files.create(file=("a.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    deadline = time.monotonic() + 120
    while client.batches.retrieve(batch.id).status != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def scrape(stack: LocalStack, service: str) -> Samples:
    port = next(one.metrics_port for one in stack.services() if one.name == service)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def wait_for(stack: LocalStack, service: str, met: Callable[[Samples], bool]) -> Samples:
    deadline = time.monotonic() + 120
    while not met(found := scrape(stack, service)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(
        value
        for (found, given), value in samples.items()
        if found == name and labels.items() <= dict(given).items()
    )


def test_the_worker_counts_what_it_hands_in(stack: LocalStack) -> None:
    samples = scrape(stack, "worker-1")
    model = stack.model_name
    requests = "vllm_batch_worker_requests_total"
    assert total(samples, requests, model=model, outcome="completed") == REQUESTS - BAD
    assert total(samples, requests, model=model, outcome="failed") == BAD
    assert total(samples, "vllm_batch_worker_request_errors_total", kind="http_422") == BAD
    assert total(samples, "vllm_batch_worker_tokens_total", kind="output") == 8 * (REQUESTS - BAD)
    assert total(samples, "vllm_batch_worker_online_requests_total", outcome="answered") == 3
    assert total(samples, "vllm_batch_worker_flush_duration_seconds_count") >= 1
    assert total(samples, "vllm_batch_worker_segment_bytes_total") > REQUESTS * 100
    assert total(samples, "vllm_batch_engine_ready") == 1
    assert total(samples, "vllm_batch_events_appended_total", type="chunk.completed") == 1
    assert total(samples, "vllm_batch_worker_results_waiting") == 0


def test_the_api_counts_requests_by_route_and_times_first_tokens(stack: LocalStack) -> None:
    samples = wait_for(
        stack, "api", lambda found: total(found, "vllm_batch_projection_lag_events") == 0
    )
    answers = "vllm_batch_http_requests_total"
    assert total(samples, answers, route="/v1/batches", method="POST", status="200") == 1
    assert total(samples, answers, route="/v1/batches/{batch_id}") >= 1
    assert total(samples, answers, route=CHAT, status="200") == 3
    online = "vllm_batch_online_requests_total"
    assert total(samples, online, model=stack.model_name, outcome="ok", endpoint=CHAT) == 3
    first = "vllm_batch_online_time_to_first_token_seconds"
    assert total(samples, f"{first}_count", model=stack.model_name) == 2
    assert 0 < total(samples, f"{first}_sum") < 20
    assert total(samples, "vllm_batch_online_tokens_total", kind="output") == 3 * 8
    assert total(samples, "vllm_batch_postgres_up") == 1
    free = total(samples, "vllm_batch_blob_disk_free_bytes")
    assert 0 < free < total(samples, "vllm_batch_blob_disk_size_bytes")


def test_the_leader_knows_the_work_and_its_own_steps(stack: LocalStack) -> None:
    samples = scrape(stack, "orchestrator")
    for step in ("plan", "finalize", "write_files"):
        assert total(samples, "vllm_batch_step_duration_seconds_count", step=step) == 1
    ended = "vllm_batch_batch_duration_seconds_count"
    assert total(samples, ended, outcome="completed") == 1
    assert total(samples, "vllm_batch_orchestrator_leader") == 1
    assert total(samples, "vllm_batch_workers", state="alive") == 1
    assert total(samples, "vllm_batch_model_workers", model=stack.model_name) == 1
    assert total(samples, "vllm_batch_stream_messages", stream="EVENTS") >= 10
    assert total(samples, "vllm_batch_events_appended_total", type="job.completed") == 1


def test_queue_depth_age_and_who_serves_it_while_the_worker_is_away(stack: LocalStack) -> None:
    client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
    worker = stack.service("worker-1")
    worker.hold()
    try:
        wait_for(
            stack, "orchestrator",
            lambda found: total(found, "vllm_batch_model_workers", model=stack.model_name) == 0,
        )  # fmt: skip
        body = {"model": stack.model_name, "messages": [{"role": "user", "content": "x"}]}
        line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
        file = client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        samples = wait_for(
            stack, "orchestrator",
            lambda found: (
                total(found, "vllm_batch_queued_requests", model=stack.model_name) == 1
                and total(found, "vllm_batch_batches", state="running") == 1
            ),
        )  # fmt: skip
        assert total(samples, "vllm_batch_chunks", state="ready") == 1
        assert 0 < total(samples, "vllm_batch_oldest_batch_age_seconds") < 60
        assert total(samples, "vllm_batch_oldest_lease_age_seconds") == 0
    finally:
        worker.release()
    wait_for(
        stack,
        "orchestrator",
        lambda found: (
            total(found, "vllm_batch_orchestrator_leader") == 1
            and total(found, "vllm_batch_queued_requests") == 0
            and total(found, "vllm_batch_batches") == 0
        ),
    )


@pytest.mark.parametrize("service", ["api", "orchestrator", "worker-1", "watchdog",
                                     "labelstudio-bridge", "admin-ui"])  # fmt: skip
def test_every_service_has_the_metrics_of_the_catalogue(stack: LocalStack, service: str) -> None:
    port = next(one.metrics_port for one in stack.services() if one.name == service)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    kind = KIND.get(service, service)
    found = {family.name for family in families if family.name.startswith("vllm_batch_")}
    known = {
        metric.name.removesuffix("_total").removesuffix("_info")
        for owner in (kind, "every service")
        for metric in described(owner)
    }
    assert {name.removesuffix("_info") for name in found if not name.endswith("_created")} == known
    build = next(family for family in families if family.name == "vllm_batch_build_info")
    assert build.samples[0].labels["service"] == kind
    assert kind in SERVICES
    assert total(scrape(stack, service), "vllm_batch_nats_connected") == 1


def test_status_and_a_file_for_prometheus_tell_where_the_metrics_are(stack: LocalStack) -> None:
    ports = {one.name: one.metrics_port for one in stack.services() if one.metrics_port}
    data = as_data(stack.home, state.read(stack.home.state_file))
    shown = {one["name"]: one["metrics_port"] for one in data["services"] if one["metrics_port"]}
    assert shown == ports
    targets = json.loads(Path(stack.home.metrics_targets_file).read_text())
    assert {one["labels"]["service"]: one["targets"] for one in targets} == {
        name: [f"127.0.0.1:{port}"] for name, port in ports.items()
    }
