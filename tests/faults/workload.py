"""Batches for the fault tests: known lines in, the answers they must get, the client's view.

The simulated engine names a request's body by its digest in the answer, so that every answer can be
told to belong to its own request, and every execution in the engine's journal to its request.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openai import APIConnectionError, AuthenticationError, InternalServerError, OpenAI
from openai.types import Batch

from vllm_batch.local.stack import LocalStack

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
POLL_SECONDS = 0.05
REFUSED_EVERY = 97


@dataclass(frozen=True)
class Line:
    """One request: its id, and the digest that the simulated engine knows it by."""

    custom_id: str
    digest: str
    fails: bool


@dataclass
class Workload:
    """One batch: what was sent, and its id once it is submitted."""

    lines: list[Line]
    content: bytes
    batch_id: str = ""
    started: float = field(default_factory=time.monotonic)


def make(
    name: str, requests: int, *, model: str, marks: dict[int, str] | None = None, seed: int = 0
) -> Workload:
    """Return a batch of ``requests``.

    Some are refused by the engine, and those in ``marks`` make it do what their mark says; none of
    these may succeed.
    """
    lines, content = [], []
    refused = dict.fromkeys(range(REFUSED_EVERY - 1, requests, REFUSED_EVERY), "[[sim:400]]")
    marked = refused | (marks or {})
    for number in range(requests):
        mark, fails = marked.get(number, ""), number in marked
        custom_id = f"{name}-{(number * 7919) % 1_000_003}-{number}"
        message = {"role": "user", "content": f"{name} {number} {mark}"}
        body = json.dumps({"model": model, "messages": [message], "max_tokens": 8}).encode()
        content.append(
            b'{"custom_id": "%b", "method": "POST", "url": "%b", "body": %b}'
            % (custom_id.encode(), ENDPOINT.encode(), body)
        )
        lines.append(Line(custom_id, digest_of(body, seed), fails))
    return Workload(lines, b"\n".join(content) + b"\n")


def digest_of(body: bytes, seed: int) -> str:
    """Return the name under which the simulated engine answers ``body``."""
    return hashlib.blake2b(body, digest_size=8, key=str(seed).encode()).hexdigest()


class Client:
    """The official client, patient with an API that is being killed."""

    def __init__(self, stack: LocalStack) -> None:
        self.openai = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=8)

    def close(self) -> None:
        """Close its connections."""
        self.openai.close()

    def submit(self, work: Workload) -> Workload:
        """Upload and create the batch."""
        file = self.openai.files.create(file=("in.jsonl", work.content), purpose="batch")
        batch = self.openai.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
        )
        work.batch_id = batch.id
        return work

    def batch(self, work: Workload) -> Batch:
        """Return the batch as it is now."""
        return self.openai.batches.retrieve(work.batch_id)

    def wait_progress(self, work: Workload, results: int, timeout_seconds: float = 180) -> Batch:
        """Wait until that many requests have a result."""
        return self._wait(work, timeout_seconds, lambda batch: results_of(batch) >= results)

    def wait_ended(self, work: Workload, timeout_seconds: float = 300) -> Batch:
        """Wait until the batch has ended, whichever way."""
        return self._wait(work, timeout_seconds, lambda batch: batch.status in ENDED)

    def _wait(self, work: Workload, timeout_seconds: float, condition: Any) -> Batch:
        deadline = time.monotonic() + timeout_seconds
        batch: Batch | None = None
        while time.monotonic() < deadline:
            try:
                batch = self.batch(work)
            except (APIConnectionError, InternalServerError):
                continue
            if condition(batch):
                return batch
            if batch.status in ENDED:
                raise AssertionError(f"this batch will not get there any more: {batch}")
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"after {timeout_seconds} s the batch is {batch}")

    def content(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the lines of a file; none where there is none."""
        if file_id is None:
            return []
        text = self.openai.files.content(file_id).text
        return [json.loads(line) for line in text.splitlines()]


def wait_until_known(client: OpenAI, timeout_seconds: float = 60) -> None:
    """Wait until the gateway has heard of a key that was made while it ran."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            client.models.list()
        except AuthenticationError:
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)
        else:
            return


def results_of(batch: Batch) -> int:
    """Return how many requests have a result."""
    counts = batch.request_counts
    return counts.completed + counts.failed if counts else 0


def executions(journal: Path) -> dict[str, int]:
    """Return how often each request was given to the engine, by its digest."""
    counts: dict[str, int] = {}
    if journal.exists():
        for digest in journal.read_text().split():
            counts[digest] = counts.get(digest, 0) + 1
    return counts
