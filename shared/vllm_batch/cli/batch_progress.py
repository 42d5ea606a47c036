"""Watching a batch: a progress bar from the counts that the API gives."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm_batch.cli import output

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
POLL_SECONDS = 0.2
POLL_SECONDS_MAX = 2.0
POLL_GROWTH = 1.2


def watched(client: OpenAI, batch: Batch) -> Batch:
    """Show ``batch`` on standard error until it has ended; return it as it ended."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = output.console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    pause = POLL_SECONDS
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(batch.status, total=None)
        while True:
            counts = batch.request_counts
            if counts is not None and counts.total:
                done = counts.completed + counts.failed
                progress.update(task, total=counts.total, completed=done)
            models = ", ".join(waiting["model"] for waiting in waiting_for(batch))
            waits = f", waiting for {models}" if models else ""
            progress.update(task, description=batch.status + waits)
            if batch.status in ENDED:
                return batch
            time.sleep(pause)
            pause = min(POLL_SECONDS_MAX, pause * POLL_GROWTH)
            batch = client.batches.retrieve(batch.id)


def waiting_for(batch: Batch) -> list[dict[str, Any]]:
    """Return the models that the batch waits for because no worker serves them."""
    extension = (batch.model_extra or {}).get("vllm_batch") or {}
    found: list[dict[str, Any]] = extension.get("waiting_for", [])
    return found
