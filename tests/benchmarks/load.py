"""Many clients at once: each creates a small batch, polls it to its end, and begins again.

    python -m tests.benchmarks.load                       200 clients for two minutes
    python -m tests.benchmarks.load --clients 50 --seconds 30

Loopback only, on the simulated engine. Prints errors, how long each kind of call took, and the peak
memory of every service. Clients and stack share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from tests.benchmarks.processes import MIB, sample
from vllm_batch.local.stack import LocalStack

LINES = 10
POLL_SECONDS = 0.5
CALL_SECONDS = 60.0
_ENDED = {"completed", "failed", "expired", "cancelled"}
console = Console()


class Load:
    """What all clients together did: seconds of each call by its kind, errors, whole batches."""

    def __init__(self, stack: LocalStack) -> None:
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.errors: collections.Counter[str] = collections.Counter()
        self.batches = 0
        self._stack = stack
        body = {"model": stack.model_name, "prompt": "Hello", "max_tokens": 8}
        self._content = "\n".join(
            json.dumps(
                {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": body}
            )
            for n in range(LINES)
        ).encode()

    async def run(self, clients: int, seconds: float) -> None:
        """Keep ``clients`` busy for ``seconds``; each finishes the batch it has begun."""
        limits = httpx2.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {self._stack.api_key}"}
        end = time.monotonic() + seconds
        async with httpx2.AsyncClient(
            base_url=self._stack.api_url, headers=headers, timeout=CALL_SECONDS, limits=limits
        ) as http:
            await asyncio.gather(*(self._client(http, end) for _ in range(clients)))

    async def _client(self, http: httpx2.AsyncClient, end: float) -> None:
        while time.monotonic() < end:
            try:
                await self._one_batch(http)
                self.batches += 1
            except (httpx2.HTTPError, RuntimeError) as error:
                self.errors[f"{type(error).__name__}: {error}"[:120]] += 1

    async def _one_batch(self, http: httpx2.AsyncClient) -> None:
        form = {"files": {"file": ("in.jsonl", self._content)}, "data": {"purpose": "batch"}}
        file = await self._call(http, "upload", "POST", "/files", **form)
        wanted = {
            "input_file_id": file["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        batch = await self._call(http, "create", "POST", "/batches", json=wanted)
        while batch["status"] not in _ENDED:
            await asyncio.sleep(POLL_SECONDS)
            batch = await self._call(http, "poll", "GET", f"/batches/{batch['id']}")
        if batch["status"] != "completed" or batch["request_counts"]["completed"] != LINES:
            raise RuntimeError(f"a batch ended {batch['status']}: {batch['request_counts']}")

    async def _call(
        self, http: httpx2.AsyncClient, kind: str, method: str, path: str, **options: object
    ) -> dict[str, object]:
        began = time.perf_counter()
        answer = await http.request(method, path, **options)
        self.seconds[kind].append(time.perf_counter() - began)
        if answer.status_code != 200:
            raise RuntimeError(f"{kind}: {answer.status_code} {answer.text[:80]}")
        found: dict[str, object] = answer.json()
        return found


def report(load: Load, stack: LocalStack, clients: int, seconds: float) -> None:
    """Print what was seen."""
    calls = sum(map(len, load.seconds.values()))
    console.print(
        f"{clients} clients, {seconds:g} s: {load.batches:,} batches, {calls:,} calls "
        f"({calls / seconds:,.0f}/s), {sum(load.errors.values())} errors"
    )
    for error, count in load.errors.most_common(5):
        console.print(f"  {count} x {error}")
    table = Table("call", "count", "p50 ms", "p99 ms", "max ms")
    for kind, found in load.seconds.items():
        cuts = statistics.quantiles(found, n=100)
        figures = (cuts[49], cuts[98], max(found))
        table.add_row(kind, f"{len(found):,}", *(f"{value * 1000:,.0f}" for value in figures))
    console.print(table)
    memory = Table("service", "peak RSS MiB")
    for status in stack.services():
        if status.pid:
            memory.add_row(status.name, f"{sample(status.pid).peak_rss_bytes / MIB:,.0f}")
    console.print(memory)


def main() -> None:
    """Start a stack of its own on free ports and load it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, LocalStack(Path(home)) as stack:
        load = Load(stack)
        asyncio.run(load.run(options.clients, options.seconds))
        report(load, stack, options.clients, options.seconds)


if __name__ == "__main__":
    main()
