"""``vllm-batch demo``: from nothing to a finished batch through the OpenAI client."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption, home_of, option_for
from vllm_batch.cli.up import Engine, EngineOption, ModelOption, PortOption
from vllm_batch.errors import BatchError
from vllm_batch.local import state
from vllm_batch.local.home import Home
from vllm_batch.local.state import StackState

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

QUESTIONS = (
    "What is the capital of France? Answer in one sentence.",
    "What is the capital of Italy?",
    "What is 2 + 2?",
    "Name three primary colours.",
    "What do bees make?",
    "How many days does a week have?",
    "Which planet is called the red planet?",
    "What is water made of?",
    "Write one sentence about the sea.",
    "What is the opposite of hot?",
)
_POLL_SECONDS = 0.5
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class DemoFailed(BatchError):
    """The demo's batch did not complete."""

    code = "demo_failed"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(rich_help_panel="Stack")
    def demo(
        home: HomeOption = None,
        engine: EngineOption = None,
        model: ModelOption = "",
        port: PortOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Install an engine and a small model, start the stack, run a batch and print the answers.

        The first run takes some minutes, the next ones seconds. The stack keeps running.
        """
        place = home_of(home)
        found = _running_stack(place, engine, model, port)
        batch, answers = run_batch(place, found)
        if as_json:
            output.print_json({"batch": batch.to_dict(), "answers": answers})
            return
        _print_answers(batch, answers)
        _print_next_steps(place, found)


def _running_stack(place: Home, engine: Engine | None, model: str, port: int | None) -> StackState:
    from vllm_batch.cli.launch import StackOptions, start_detached

    found = state.read(place.state_file)
    if found.is_alive and found.state == "ready":
        return found
    say = output.console(stderr=True)
    say.print("[bold]starting the stack[/] (the first time installs an engine and a model)")
    options = StackOptions(
        home=place, engine=engine.value if engine else None, port=port, model=model
    )
    return start_detached(options)


def run_batch(place: Home, found: StackState) -> tuple[Batch, list[dict[str, Any]]]:
    """Send the questions as one batch; return the batch and the answers in order.

    Raises DemoFailed with the batch's own errors.
    """
    from openai import OpenAI

    key = place.api_key_file.read_text(encoding="utf-8").strip()
    with OpenAI(base_url=found.api_url, api_key=key) as client:
        upload = client.files.create(
            file=("demo.jsonl", request_lines(found.model_name)), purpose="batch"
        )
        batch = client.batches.create(
            input_file_id=upload.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = _watch(client, batch)
        if batch.status != "completed" or not batch.output_file_id:
            errors = [error.message for error in (batch.errors and batch.errors.data) or []]
            raise DemoFailed(
                f"batch {batch.id} is {batch.status}: {'; '.join(filter(None, errors)) or 'see'}"
                f" `vllm-batch logs worker-1 --home '{place.root}'`"
            )
        lines = client.files.content(batch.output_file_id).text.splitlines()
    by_id = {line["custom_id"]: line for line in map(json.loads, lines)}
    answers = []
    for number, question in enumerate(QUESTIONS, 1):
        body = by_id.get(f"question-{number}", {}).get("response", {}).get("body", {})
        choices = body.get("choices") or [{"message": {"content": "(no answer)"}}]
        answers.append({"question": question, "answer": choices[0]["message"]["content"].strip()})
    return batch, answers


def request_lines(model: str) -> bytes:
    """Return the batch file: one chat request a line."""
    lines = [
        json.dumps(
            {
                "custom_id": f"question-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": model,
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": 48,
                    "temperature": 0,
                },
            }
        )
        for number, question in enumerate(QUESTIONS, 1)
    ]
    return ("\n".join(lines) + "\n").encode()


def _watch(client: OpenAI, batch: Batch) -> Batch:
    """Show progress until the batch has ended."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=output.console(stderr=True)) as progress:
        task = progress.add_task(batch.status, total=len(QUESTIONS))
        while True:
            counts = batch.request_counts
            done = counts.completed + counts.failed if counts else 0
            progress.update(task, description=batch.status, completed=done)
            if batch.status in _ENDED:
                return batch
            time.sleep(_POLL_SECONDS)
            batch = client.batches.retrieve(batch.id)


def _print_answers(batch: Batch, answers: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"batch {batch.id}: {batch.status}", title_justify="left")
    table.add_column("question", style="cyan")
    table.add_column("answer")
    for answer in answers:
        table.add_row(escape(answer["question"]), escape(answer["answer"]))
    output.console().print(table)


def _print_next_steps(place: Home, found: StackState) -> None:
    option = option_for(place)
    command = output.program()
    engine = "" if found.engine == "vllm" else f" --engine {found.engine}"
    console = output.console()
    for what, how in (
        ("API", found.api_url),
        ("model", f"{found.model_name} (engine {found.engine})"),
        ("files and data", str(place.root)),
        ("use it from a shell", f'eval "$({command} env{option})"'),
        ("see what runs", f"{command} status{option}"),
        ("stop it", f"{command} down{option}"),
        ("start it again later", f"{command} up --detach{engine}{option}"),
    ):
        console.print(f"[dim]{what:>20}[/]  {how}", soft_wrap=True)
    console.print("[dim]the stack keeps running until you stop it[/]")
