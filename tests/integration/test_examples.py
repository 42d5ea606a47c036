"""The examples of the documentation, as a reader would run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import openai
from tests.e2e.conftest import Round

from vllm_batch.local.stack import LocalStack

EXAMPLES = Path(__file__).parents[2] / "shared" / "docs" / "examples"


def test_a_subscriber_hears_of_a_completed_batch(tmp_path: Path) -> None:
    with (
        LocalStack(tmp_path / "stack") as stack,
        openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key) as client,
    ):
        command = (sys.executable, str(EXAMPLES / "subscribe.py"), _granted_url(stack))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            try:
                work = Round(stack, client)
                heard, batches = "", []
                while not heard:  # it may still be connecting when the first one ends
                    batches.append(work.run([work.line(f"r{n}") for n in range(3)]).id)
                    heard = _line(subscriber, seconds=1.0)
                batch, *counts = heard.split()
                assert batch in batches
                assert counts == ["3", "of", "3"]
            finally:
                subscriber.terminate()


def _granted_url(stack: LocalStack) -> str:
    """Return the URL of a tool that may hear what the example listens to, and no more."""
    command = (
        sys.executable, "-m", "vllm_batch.cli", "events", "grant", "example",
        "--subjects", "job.completed.*", "--json", "--home", str(stack.home.root),
    )  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return str(json.loads(said.stdout)["nats_url"])


def _line(process: subprocess.Popen[str], *, seconds: float) -> str:
    """Return the next line of its output, nothing if none comes."""
    import select

    assert process.stdout is not None
    assert process.poll() is None
    readable, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if readable else ""
