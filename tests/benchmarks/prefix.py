"""What keeping requests with a shared prefix together is worth, on a real engine.

    python -m tests.benchmarks.prefix               16 system prompts, 8 questions to each, 3 rounds

The file has the questions in random order. One stack works them off in that order, the other groups
them by prefix; otherwise they are the same, and they take turns. Each round has new system prompts,
so nothing is left over from the one before. SmolLM2's whole KV cache would hold all prompts of so
small a file, which a real model's does not, so the engine gets room for a few of them only. The hit
rate is the part of the prompt tokens that vLLM says it had cached. Needs the engine environment
(``./vllm-batch demo`` makes it).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.table import Table

from tests.benchmarks.orchestration import ENDPOINT, run_batch
from vllm_batch.local.stack import LocalStack

BLOCKS = 32
BLOCK_TOKENS = 128
WORDS = ("river", "clock", "bread", "moon", "chess", "rain", "bridge", "salt", "glass", "wool")
PROMPT_WORDS = 420
POLL_SECONDS = 0.5
SEED = 20_260
WAYS = {"grouped by prefix": True, "random order": False}
console = Console()


@dataclass(frozen=True)
class Turn:
    """One batch: wall seconds, and which part of its prompt tokens was cached."""

    seconds: float
    hit_rate: float


def system_prompt(round_number: int, number: int) -> str:
    """Return a text of some hundred tokens that no other prompt begins with."""
    rng = random.Random(f"{SEED}/{round_number}/{number}")
    return f"Rule book {round_number}-{number}. " + " ".join(rng.choices(WORDS, k=PROMPT_WORDS))


def write_input(path: Path, model: str, prompts: int, questions: int, round_number: int) -> None:
    """Write the file: each prompt with its questions, all in random order."""
    asked = [(prompt, question) for prompt in range(prompts) for question in range(questions)]
    random.Random(SEED + round_number).shuffle(asked)
    with path.open("w") as file:
        for number, (prompt, question) in enumerate(asked):
            body = {
                "model": model,
                "messages": [
                    {"role": "system", "content": system_prompt(round_number, prompt)},
                    {"role": "user", "content": f"Which word comes {question + 2} times?"},
                ],
                "max_tokens": 4,
                "temperature": 0,
                "ignore_eos": True,
            }
            line = {"custom_id": f"r-{number}", "method": "POST", "url": ENDPOINT, "body": body}
            file.write(json.dumps(line) + "\n")


def take_turn(stack: LocalStack, source: Path, output: Path, requests: int) -> Turn:
    """Run the file; the output is checked to be in the file's order."""
    client = OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
    run = run_batch(stack, client, source, output, requests, poll_seconds=POLL_SECONDS)
    usage = client.batches.list(limit=1).data[0].usage
    assert usage is not None
    return Turn(run.seconds, usage.input_tokens_details.cached_tokens / usage.input_tokens)


def stack_settings(*, grouping: bool) -> dict[str, Any]:
    """Return settings for an engine whose cache is too small for all prompts."""
    return {
        "prefix_grouping": grouping,
        "engine_max_num_seqs": 4,
        "engine_args": (
            "--enforce-eager", "--max-model-len", "1024", "--enable-prompt-tokens-details",
            "--num-gpu-blocks-override", str(BLOCKS), "--block-size", str(BLOCK_TOKENS),
        ),
    }  # fmt: skip


def measure(options: argparse.Namespace, directory: Path) -> dict[str, list[Turn]]:
    """Return each way's turns; the first, warming round is left out."""
    turns: dict[str, list[Turn]] = {way: [] for way in WAYS}
    with ExitStack() as running:
        stacks = {
            way: running.enter_context(
                LocalStack(
                    directory / way.replace(" ", "-"),
                    engine="vllm",
                    settings_overrides=stack_settings(grouping=grouping),
                )
            )
            for way, grouping in WAYS.items()
        }
        for round_number in range(options.rounds + 1):
            prompts = options.prompts if round_number else 2
            for way, stack in stacks.items():
                source = directory / "in.jsonl"
                write_input(source, stack.model_name, prompts, options.questions, round_number)
                requests = prompts * options.questions
                turn = take_turn(stack, source, directory / "out.jsonl", requests)
                console.print(
                    f"  {f'round {round_number}' if round_number else 'warm-up'}: {way}: "
                    f"{turn.seconds:.1f} s, {turn.hit_rate:.0%} of the prompt tokens cached"
                )
                if round_number:
                    turns[way].append(turn)
    return turns


def report(turns: dict[str, list[Turn]], requests: int) -> None:
    """Print medians side by side, and the ratio round by round."""
    console.print(f"KV cache: {BLOCKS} blocks of {BLOCK_TOKENS} tokens; 4 requests at once")
    table = Table("", "requests/s (median)", "prompt tokens cached (median)")
    for way, taken in turns.items():
        rate = requests / statistics.median(turn.seconds for turn in taken)
        hits = statistics.median(turn.hit_rate for turn in taken)
        table.add_row(way, f"{rate:.2f}", f"{hits:.0%}")
    console.print(table)
    ratios = sorted(
        other.seconds / ours.seconds for ours, other in zip(*turns.values(), strict=True)
    )
    console.print(
        f"random / grouped, wall time (min, median, max): "
        f"{ratios[0]:.2f}, {statistics.median(ratios):.2f}, {ratios[-1]:.2f}"
    )


def main() -> None:
    """Start both stacks, take turns, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report(measure(options, Path(directory)), options.prompts * options.questions)


if __name__ == "__main__":
    main()
