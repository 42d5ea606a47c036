"""Fair share: one tenant floods the service, another one has a ten-line batch.

    python -m tests.benchmarks.tenants                     100,000 requests against ten lines
    python -m tests.benchmarks.tenants --flood 20000 --rounds 5

On the simulated engine with a latency, so that the flood keeps the worker full for minutes. Prints
how long the small batch takes on an idle system, during the flood, and the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import openai
from rich.console import Console

from vllm_batch import api_keys
from vllm_batch.event_store import jetstream
from vllm_batch.local.stack import LocalStack

SMALL_LINES = 10
LATENCY_SECONDS = 0.2
POLL_SECONDS = 0.02
LINES_PER_BATCH = 50_000
console = Console()


def content(model: str, lines: int) -> bytes:
    """Return a batch file."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 8}
    return "\n".join(
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": body})
        for n in range(lines)
    ).encode()


async def new_key(stack: LocalStack, project: str) -> str:
    """Make a key of a tenant."""
    async with jetstream.connect(stack.settings, source="benchmark") as store:
        _, secret = await api_keys.create(store, project=project)
    return secret


def submit(client: openai.OpenAI, data: bytes) -> str:
    """Begin a batch; return its id."""
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    return batch.id


def small_batch(client: openai.OpenAI, data: bytes) -> float:
    """Return the seconds from the upload to the end of a small batch."""
    began = time.perf_counter()
    batch = submit(client, data)
    while (found := client.batches.retrieve(batch)).status != "completed":
        if found.status in {"failed", "expired", "cancelled"}:
            raise RuntimeError(f"the batch is {found.status}")
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - began


def measure(stack: LocalStack, flood: int, rounds: int) -> None:
    """Print both times and their ratio."""
    keys = [asyncio.run(new_key(stack, project)) for project in ("crowd", "small")]
    crowd, small = (
        openai.OpenAI(base_url=stack.api_url, api_key=key, max_retries=10) for key in keys
    )
    data = content(stack.model_name, SMALL_LINES)
    small_batch(small, data)
    idle = [small_batch(small, data) for _ in range(rounds)]
    floods = [
        submit(crowd, content(stack.model_name, min(LINES_PER_BATCH, flood - done)))
        for done in range(0, flood, LINES_PER_BATCH)
    ]
    while not crowd.batches.retrieve(floods[0]).request_counts.completed:  # type: ignore[union-attr]
        time.sleep(POLL_SECONDS)
    busy = [small_batch(small, data) for _ in range(rounds)]
    states = [crowd.batches.retrieve(batch) for batch in floods]
    done = sum(state.request_counts.completed for state in states if state.request_counts)
    if done >= flood:
        raise RuntimeError("the flood was over before the small batches: make it larger")
    quiet, loud = statistics.median(idle), statistics.median(busy)
    console.print(
        f"a batch of {SMALL_LINES} lines, median of {rounds}: idle {quiet:.2f} s, while another "
        f"tenant has {flood:,} requests in line {loud:.2f} s (worst {max(busy):.2f}): "
        f"{loud / quiet:.2f}x; the flood was at {done:,}"
    )
    for batch in floods:
        crowd.batches.cancel(batch)


def main() -> None:
    """Start a stack of its own on free ports and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flood", type=int, default=100_000, help="requests of the other tenant")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    overrides = {"simulated_latency_seconds": LATENCY_SECONDS}
    with (
        tempfile.TemporaryDirectory() as home,
        LocalStack(Path(home), settings_overrides=overrides) as stack,
    ):
        measure(stack, options.flood, options.rounds)


if __name__ == "__main__":
    main()
