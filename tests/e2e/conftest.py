"""Whole stacks for the end-to-end tests: one with the simulated engine, one with real vLLM."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types import Batch

from vllm_batch.local.stack import LocalStack

ENDPOINT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}
MIB = 1024 * 1024
LARGEST_FILE_BYTES = 12 * MIB
LOG_LINES = 60


@dataclass
class Round:
    """A stack and the official client, as a user would hold them."""

    stack: LocalStack
    client: openai.OpenAI

    @property
    def model(self) -> str:
        return self.stack.model_name

    def line(self, custom_id: str, prompt: str = "Hello", **body: Any) -> dict[str, Any]:
        full = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 16,
            **body,
        }
        return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": full}

    def submit(self, content: bytes, *, endpoint: Any = ENDPOINT, window: Any = "24h") -> Batch:
        file = self.client.files.create(file=("in.jsonl", content), purpose="batch")
        return self.client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window=window
        )

    def wait(self, batch: Batch, *, seconds: float = 300) -> Batch:
        deadline = time.monotonic() + seconds
        while batch.status not in ENDED:
            assert time.monotonic() < deadline, f"{batch.status}: {batch.request_counts}"
            time.sleep(0.02)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def run(self, lines: Sequence[dict[str, Any]], **options: Any) -> Batch:
        return self.wait(self.submit(jsonl(lines), **options))

    def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(line) for line in self.client.files.content(file_id).iter_lines()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the end of the worker's log beside a failure: why an engine died stands nowhere else."""
    report = yield
    given = getattr(item, "funcargs", {}).values()
    for user in given if report.failed else ():
        if isinstance(user, Round):
            lines = user.stack.service("worker-1").log_text().splitlines()
            report.sections.append(("worker log", "\n".join(lines[-LOG_LINES:])))
    return report


def jsonl(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    home = tmp_path_factory.mktemp("a home") / "stack"
    overrides = {
        "batch_file_bytes_max": LARGEST_FILE_BYTES,
        "cancel_grace_seconds": 2,
        "retry_backoff_seconds": 0.02,
        "segment_retention_seconds": 0,
    }
    with LocalStack(home, engine="simulated", settings_overrides=overrides) as stack:
        client = openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        with client:
            yield Round(stack, client)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    """Real vLLM, started once, as a user starts it who also wants tool calls, on a machine without
    a C++ compiler and without anything that one has compiled."""
    folder = tmp_path_factory.mktemp("a real home")
    overrides = {
        "engine_args": (
            "--enforce-eager", "--max-model-len", "1024",
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        ),
        "heartbeat_seconds": 0.5,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", str(folder / "no compiler"))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled"))
        with (
            LocalStack(folder / "stack", engine="vllm", settings_overrides=overrides) as stack,
            openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0) as client,
        ):
            yield Round(stack, client)
