"""What the whole way through the system costs on a real engine, against vLLM alone.

    python -m tests.benchmarks.engine                  512 chat requests, three interleaved rounds

The same requests on the same CPU engine with the same options: ``LLM.chat`` offline, vLLM's own
batch runner, and our stack from upload to the downloaded output. All three are loaded once and take
turns, so that a drifting machine hits them alike; the ratios are taken round by round. Each round
has new prompts, so that no prefix cache helps. Needs the engine environment (``./vllm-batch demo``
makes it).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from openai import OpenAI
from rich.console import Console
from rich.table import Table

from tests.benchmarks.orchestration import ENDPOINT, run_batch
from vllm_batch.local import engine_env, model
from vllm_batch.local.engine_env import Variant
from vllm_batch.local.stack import LocalStack

DRIVER = Path(__file__).with_name("engine_driver.py")
OPTIONS: dict[str, Any] = {"max_num_seqs": 128, "max_model_len": 1024, "enforce_eager": True}
TOPICS = ("rivers", "clocks", "bread", "the moon", "chess", "rain", "bridges", "salt")
# Ten polls a second would cost the engine's second core some percent.
POLL_SECONDS = 0.5
console = Console()


class Peer:
    """One of vLLM's own ways, loaded in a process of its own."""

    def __init__(self, kind: str, python: Path, model_directory: Path, directory: Path) -> None:
        self._log = (directory / f"{kind}.log").open("w")
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        self._process = subprocess.Popen(
            [python, DRIVER, kind, model_directory, json.dumps(OPTIONS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("BENCH "):
                answer: dict[str, Any] = json.loads(line.removeprefix("BENCH "))
                return answer
            self._log.write(line)
        raise RuntimeError(f"the engine ended: see {self._log.name}")

    def seconds(self, source: Path, target: Path) -> float:
        """Run a batch file; return the seconds it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{source} {target}\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.killpg(self._process.pid, 15)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
        self._log.close()


def write_input(path: Path, model_name: str, requests: int, round_number: int, tokens: int) -> None:
    """Write a batch file of prompts that no other round has."""
    with path.open("w") as file:
        for number in range(requests):
            topic = TOPICS[number % len(TOPICS)]
            prompt = f"Round {round_number}, question {number}: what should I know about {topic}?"
            body = {
                "model": model_name,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            line = {"custom_id": f"r-{number}", "method": "POST", "url": ENDPOINT, "body": body}
            file.write(json.dumps(line) + "\n")


def measure(options: argparse.Namespace, directory: Path) -> list[dict[str, float]]:
    """Return seconds per way, one dict a round; the first, warming round is left out."""
    python = engine_env.ensure(Variant.CPU, on_progress=console.print)
    folder = model.ensure(python, on_progress=console.print)
    rounds = []
    with (
        LocalStack(directory / "home", engine="vllm") as stack,
        Peer("offline", python, folder, directory) as offline,
        Peer("run-batch", python, folder, directory) as runner,
    ):
        client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        peer_input, our_input = directory / "peer.jsonl", directory / "ours.jsonl"
        output = directory / "out"
        for number in range(options.rounds + 1):
            requests = options.requests if number else 32
            write_input(peer_input, str(folder), requests, number, options.tokens)
            write_input(our_input, stack.model_name, requests, number, options.tokens)
            seconds = {
                "offline LLM.chat": offline.seconds(peer_input, output),
                "vllm run-batch": runner.seconds(peer_input, output),
                "vllm-batch": run_batch(
                    stack, client, our_input, output, requests, poll_seconds=POLL_SECONDS
                ).seconds,
            }
            line = ", ".join(f"{name} {requests / took:.2f}/s" for name, took in seconds.items())
            console.print(f"  {'warm-up' if number == 0 else f'round {number}'}: {line}")
            if number:
                rounds.append(seconds)
            time.sleep(1)
    return rounds


def report(rounds: list[dict[str, float]], requests: int) -> None:
    """Print medians, and our ratio to each peer round by round."""
    table = Table("", "requests/s (median)", "vllm-batch / this (min, median, max)")
    for name in rounds[0]:
        rate = requests / statistics.median(seconds[name] for seconds in rounds)
        ratios = sorted(seconds[name] / seconds["vllm-batch"] for seconds in rounds)
        table.add_row(
            name,
            f"{rate:.2f}",
            f"{ratios[0]:.3f}, {statistics.median(ratios):.3f}, {ratios[-1]:.3f}",
        )
    console.print(table)


def main() -> None:
    """Load all three, take turns, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32, help="output tokens per request")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report(measure(options, Path(directory)), options.requests)


if __name__ == "__main__":
    main()
