"""Runs inside the engine's own environment: the two peers of the engine benchmark, loaded once.

For every line ``<input> <output>`` on stdin it runs the batch file and prints the seconds it took
as one line of JSON. ``offline`` is ``LLM.chat`` on all prompts at once; ``run-batch`` is vLLM's own
batch runner on an engine that is already up, so that neither pays for loading.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Runner = Callable[[str, str], None]


def say(**fields: Any) -> None:
    """Print one line of JSON to the benchmark, past whatever the engine logs."""
    sys.__stdout__.write("BENCH " + json.dumps(fields) + "\n")
    sys.__stdout__.flush()


def serve(run: Runner) -> None:
    """Answer commands until stdin ends."""
    say(ready=True)
    for line in sys.stdin:
        source, target = line.split()
        started = time.perf_counter()
        run(source, target)
        say(seconds=time.perf_counter() - started)


def offline(model: str, options: dict[str, Any]) -> None:
    """Serve ``LLM.chat``."""
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, **options)

    def run(source: str, target: str) -> None:
        bodies = [json.loads(line)["body"] for line in Path(source).read_text().splitlines()]
        first = bodies[0]
        sampling = SamplingParams(
            temperature=0, max_tokens=first["max_tokens"], ignore_eos=first["ignore_eos"]
        )
        outputs = engine.chat([body["messages"] for body in bodies], sampling, use_tqdm=False)
        Path(target).write_text("\n".join(output.outputs[0].text for output in outputs))

    serve(run)


async def run_batch(model: str, options: dict[str, Any]) -> None:
    """Serve vLLM's batch runner."""
    from vllm.entrypoints.launchers import run_batch as runner
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

    flags = [f"--{key.replace('_', '-')}" for key, value in options.items() if value is True]
    flags += [
        f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not True
    ]
    sys.argv = ["run-batch", "-i", "unset", "-o", "unset", "--model", model, *flags]
    args = runner.parse_args()
    async with build_async_engine_client(args) as client:
        loop = asyncio.get_running_loop()
        say(ready=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            args.input_file, args.output_file = line.split()
            started = time.perf_counter()
            await runner.run_batch(client, args)
            say(seconds=time.perf_counter() - started)


if __name__ == "__main__":
    kind, model_directory, raw_options = sys.argv[1:4]
    engine_options = json.loads(raw_options)
    if kind == "offline":
        offline(model_directory, engine_options)
    else:
        asyncio.run(run_batch(model_directory, engine_options))
