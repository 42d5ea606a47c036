"""How much the system around the engine costs: the simulated engine answers at once.

    python -m tests.benchmarks.orchestration                       50,000 requests, three rounds
    python -m tests.benchmarks.orchestration --sizes 1000,50000,200000
    python -m tests.benchmarks.orchestration --file-mib 200        peak memory on a 200 MB file

From the first byte of the upload to the last byte of the downloaded output, with the official
openai client. CPU is what the kernel charged all processes of the stack (NATS and Postgres
included, the client not), so it does not depend on how busy the machine is otherwise; the rate
does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI
from rich.console import Console
from rich.table import Table

from tests.benchmarks.processes import MIB, Sample, sample
from vllm_batch.local.stack import LocalStack

ENDPOINT = "/v1/chat/completions"
POLL_SECONDS = 0.1
DEADLINE_SECONDS = 600
LLMQ_JOBS_PER_SECOND = (1120, 1470)
console = Console()


@dataclass(frozen=True)
class Run:
    """One batch: its size, wall seconds, and per service what it used."""

    requests: int
    seconds: float
    cpu: dict[str, float]
    peak: dict[str, int]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def cpu_milliseconds_per_request(self) -> float:
        """CPU of all processes."""
        return sum(self.cpu.values()) / self.requests * 1000


def lines(model: str, requests: int, padding_bytes: int) -> Iterator[bytes]:
    """Yield ``requests`` lines of a batch file with ``padding_bytes`` more text in each."""
    padding = "x" * padding_bytes
    for number in range(requests):
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"Say {number}.{padding}"}],
            "max_tokens": 8,
        }
        line = {"custom_id": f"r-{number}", "method": "POST", "url": ENDPOINT, "body": body}
        yield json.dumps(line).encode() + b"\n"


def samples(stack: LocalStack) -> dict[str, Sample]:
    """Return what every service has used so far."""
    return {status.name: sample(status.pid) for status in stack.services() if status.pid}


def run_batch(
    stack: LocalStack,
    client: OpenAI,
    path: Path,
    output: Path,
    requests: int,
    *,
    poll_seconds: float = POLL_SECONDS,
) -> Run:
    """Upload, create, poll, download; check that every request has its answer."""
    before = samples(stack)
    started = time.perf_counter()
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h"
    )
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        if time.perf_counter() - started > DEADLINE_SECONDS:
            raise TimeoutError(f"{batch.status} after {DEADLINE_SECONDS} s: {batch.request_counts}")
        time.sleep(poll_seconds)
        batch = client.batches.retrieve(batch.id)
    if batch.status != "completed" or batch.output_file_id is None:
        raise RuntimeError(f"the batch is {batch.status}: {batch.errors}")
    with client.files.with_streaming_response.content(batch.output_file_id) as answer:
        answer.stream_to_file(output)
    seconds = time.perf_counter() - started
    after = samples(stack)
    check(output, requests)
    return Run(
        requests,
        seconds,
        {name: after[name].cpu_seconds - before[name].cpu_seconds for name in before},
        {name: after[name].peak_rss_bytes for name in after},
    )


def check(output: Path, requests: int) -> None:
    """Raise unless the output has every custom_id once, in the input's order."""
    with output.open("rb") as file:
        for number, line in enumerate(file):
            if json.loads(line)["custom_id"] != f"r-{number}":
                raise RuntimeError(f"line {number} is out of order")
    if number + 1 != requests:
        raise RuntimeError(f"{number + 1} answers to {requests} requests")


def measure(stack: LocalStack, requests: int, padding_bytes: int, rounds: int) -> list[Run]:
    """Run the same batch ``rounds`` times after one small warm-up."""
    client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
    with tempfile.TemporaryDirectory() as directory:
        path, output = Path(directory) / "in.jsonl", Path(directory) / "out.jsonl"
        runs = []
        for count in (200, *[requests] * rounds):
            with path.open("wb") as file:
                file.writelines(lines(stack.model_name, count, padding_bytes))
            runs.append(run_batch(stack, client, path, output, count))
            console.print(
                f"  {count:>7,} requests: {runs[-1].seconds:6.2f} s, {runs[-1].rate:8,.0f}/s, "
                f"{runs[-1].cpu_milliseconds_per_request:.4f} CPU-ms each"
            )
    return runs[1:]


def median(runs: list[Run]) -> Run:
    """Return the run with the median rate."""
    return sorted(runs, key=lambda run: run.rate)[len(runs) // 2]


def report(runs: list[Run]) -> None:
    """Print one column per size, one row per figure and service."""
    table = Table("", *[f"{run.requests:,} requests" for run in runs])
    table.add_row("requests/s", *[f"{run.rate:,.0f}" for run in runs])
    low, high = LLMQ_JOBS_PER_SECOND
    table.add_row(
        f"/ llmq's {low:,}-{high:,} jobs/s",
        *[f"{run.rate / high:.1f}x - {run.rate / low:.1f}x" for run in runs],
    )
    table.add_row("CPU-ms/request", *[f"{run.cpu_milliseconds_per_request:.4f}" for run in runs])
    first = runs[0].cpu_milliseconds_per_request
    table.add_row(
        "/ the smallest size",
        *[f"{run.cpu_milliseconds_per_request / first:.2f}x" for run in runs],
    )
    table.add_section()
    for name in runs[0].cpu:
        table.add_row(
            f"{name}: CPU-s per 1,000, peak RSS",
            *[
                f"{run.cpu[name] / run.requests * 1000:.4f} s, {run.peak[name] / MIB:,.0f} MiB"
                for run in runs
            ],
        )
    console.print(table)


def main() -> None:
    """Start a stack of its own on free ports and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="50000", help="requests per batch, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--file-mib", type=int, help="one 50,000-line file of this size")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    padding = options.file_mib * MIB // 50_000 - 150 if options.file_mib else 0
    overrides = {"batch_requests_max": max(sizes), "batch_file_bytes_max": 1024 * MIB,
                 "file_bytes_max": 1024 * MIB}  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as home,
        LocalStack(
            Path(home), engine="simulated", workers=options.workers, settings_overrides=overrides
        ) as stack,
    ):
        report([median(measure(stack, size, padding, options.rounds)) for size in sizes])


if __name__ == "__main__":
    main()
