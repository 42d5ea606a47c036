"""A real Prometheus scrapes a real stack, evaluates our alert rules and answers all queries of our
dashboards."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import OpenAI
from tests import real_prometheus
from tests.dashboards import FOLDER, RULES, queries, rules

from vllm_batch.local import ports
from vllm_batch.local.stack import ALL_ROLES, LocalStack

CHAT = "/v1/chat/completions"
SAYS_SOMETHING = {
    "overview: Leader A", "overview: Workers alive A", "overview: Requests per second A",
    "overview: Tokens per second A", "overview: What happened A", "overview: Answers over HTTP A",
    "overview: Read models behind A", "overview: Event log: time of an append B",
    "overview: Streams on disk A", "overview: Disk with files and results A",
    "overview: Memory of services A", "overview: CPU of services A", "overview: Webhooks B",
    "workers: Requests per second A", "workers: Output tokens per second A",
    "workers: In flight A", "workers: In the engine, as it says A", "workers: Engine: ready A",
    "workers: Checkpoints: time A", "workers: Results not handed in A",
    "batches: Workers that serve the model A", "batches: Requests done per second A",
    "batches: Steps: time, 95 % A", "batches: Chunks: leased, done, given back A",
    "batches: From submission to end A",
    "online: Requests per second A", "online: Time to the first token B",
    "online: Time to the end of the answer A", "online: Tokens per second A",
    "online: API: 95 % of answers within A",
    "labeling: Projects A", "labeling: Admin UI: pages open A",
}  # fmt: skip


def program(name: str) -> str:
    found = real_prometheus.find(name)
    if found is None:
        pytest.skip(f"there is no {name} here, and no Debian to get it from")
    return str(found)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    program("prometheus")
    home, only = tmp_path_factory.mktemp("stack"), ALL_ROLES - {"trainer"}
    with LocalStack(home, only=only) as stack:
        yield stack


class Prometheus:
    """A server that scrapes a stack every second."""

    def __init__(self, folder: Path, stack: LocalStack) -> None:
        port = ports.pick(None)
        self.url = f"http://127.0.0.1:{port}"
        config = {
            "global": {"scrape_interval": "3s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in RULES],
            "scrape_configs": [
                {
                    "job_name": "vllm-batch",
                    "file_sd_configs": [{"files": [str(stack.home.metrics_targets_file)]}],
                }
            ],
        }
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                (
                    program("prometheus"), f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ),
                stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:
                    raise ConnectionError("it is not ready yet") from error
                raise AssertionError(f"{query}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def wait_for(self, met: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if met():
                    return
            except OSError:
                pass  # it does not listen yet
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture(scope="module")
def prometheus(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), stack)
    try:
        server.wait_for(lambda: len(server.query('up{job="vllm-batch"} == 1')) == 6)
        yield server
    finally:
        server.stop()


def work(stack: LocalStack, *, online: int, wait: bool = True) -> None:
    client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
    body = {"model": stack.model_name, "messages": [{"role": "user", "content": "x"}]}
    lines = [
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body})
        for n in range(40)
    ]
    file = client.files.create(file=("a.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    for _ in range(online):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        assert list(client.chat.completions.create(**body, **options))  # type: ignore[call-overload]
    deadline = time.monotonic() + 120
    while wait and client.batches.retrieve(batch.id).status != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_query_is_understood_and_those_of_a_busy_stack_say_something(
    stack: LocalStack, prometheus: Prometheus
) -> None:
    work(stack, online=2)
    finished = 'vllm_batch_batch_duration_seconds_count{outcome="completed"}'
    prometheus.wait_for(lambda: bool(prometheus.query(finished)))
    work(stack, online=2)  # a counter that has just come has no rate yet
    silent: set[str] = set()

    def asked() -> bool:
        silent.clear()
        for place, expression in queries():
            if not prometheus.query(expression):
                silent.add(place)
        return not SAYS_SOMETHING & silent

    places = {place for place, _ in queries()}
    assert places >= SAYS_SOMETHING
    try:
        prometheus.wait_for(asked)
    except AssertionError:
        raise AssertionError(f"silent: {sorted(SAYS_SOMETHING & silent)}") from None


def test_alert_rules_are_evaluated_and_one_fires_for_real(
    stack: LocalStack, prometheus: Prometheus
) -> None:
    worker = stack.service("worker-1")
    worker.hold()
    try:
        work(stack, online=0, wait=False)

        def pending() -> bool:
            alerts = prometheus.get("/api/v1/alerts")["alerts"]
            return any(one["labels"]["alertname"] == "NoWorkerForQueuedModel" for one in alerts)

        prometheus.wait_for(pending)
        groups = prometheus.get("/api/v1/rules")["groups"]
        evaluated = [rule for group in groups for rule in group["rules"]]
        assert {rule["name"] for rule in evaluated} == {
            rule["alert"] for path in RULES for rule in rules(path)
        }
        assert {rule["health"] for rule in evaluated} == {"ok"}, evaluated
    finally:
        worker.release()


def test_promtool_finds_nothing_wrong_and_the_alerts_are_what_they_should_be(
    tmp_path: Path,
) -> None:
    promtool = program("promtool")
    for command in (("rules", *map(str, RULES)), ("config", "--syntax-only",
                                                  str(FOLDER / "prometheus.yml"))):  # fmt: skip
        done = subprocess.run(
            (promtool, "check", *command), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    cases = (Path(__file__).parent / "alert_rules_test.yml").read_text()
    file = tmp_path / "test.yml"
    file.write_text(cases.replace("RULES", ", ".join(map(str, RULES))))
    done = subprocess.run(
        (promtool, "test", "rules", str(file)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
