"""The process that fine-tunes: started in the engine's environment, killed with its owner.

Owns one folder under ``<home>/training`` while it runs. Stands under the guardian, like an engine:
nothing of it outlives the trainer, however the trainer ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batch_gpu_worker.engines import guardian
from batch_gpu_worker.engines.output import LAST_WORDS_LINES, forward, open_pipe
from batch_gpu_worker.engines.vllm_command import child_environment
from batch_gpu_worker.trainer import fine_tune
from batch_gpu_worker.trainer.fine_tune import Job
from vllm_batch import tasks

GRACE_SECONDS = 2.0


class Step(msgspec.Struct, frozen=True):
    """What the process reports. Losses are None where it did not measure them."""

    step: int
    steps: int
    epoch: float
    loss: float | None = None
    validation_loss: float | None = None


@dataclass
class TrainingProcess:
    """A running process; ``steps`` ends when it does."""

    process: asyncio.subprocess.Process
    last_words: deque[str]

    async def steps(self) -> AsyncIterator[Step]:
        """Yield its reports."""
        assert self.process.stdout is not None  # noqa: S101 - asked for below
        async for line in self.process.stdout:
            yield msgspec.json.decode(line, type=Step)

    async def ended(self) -> str | None:
        """Wait for its end; return why it failed, None if it did not."""
        status = await self.process.wait()
        if status == 0:
            return None
        if self.was_killed:
            return f"the training process was killed (status {status})"
        words = " | ".join(list(self.last_words)[-3:])
        return f"the training process ended with status {status}: {words}"

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it: nothing speaks against trying again."""
        status = self.process.returncode
        return status is not None and (status < 0 or status > 128)


@asynccontextmanager
async def running(python: Path, job: Job, record: Path) -> AsyncIterator[TrainingProcess]:
    """Start the process and yield it; all of it is gone afterwards. ``record``: a file beside
    which an earlier process of this trainer, if one was left, is found and killed."""
    await asyncio.to_thread(guardian.kill_recorded, record)
    order = record.with_suffix(".job")
    order.write_bytes(msgspec.json.encode(job))
    output, writer = await open_pipe()
    last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", guardian.__file__, str(record), str(GRACE_SECONDS),
            str(python), str(Path(fine_tune.__file__)), str(order),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=writer,
            start_new_session=True,
            env=child_environment(os.environ),
        )  # fmt: skip
    finally:
        os.close(writer)
    reading = asyncio.create_task(forward(output, last_words))
    try:
        yield TrainingProcess(process, last_words)
        await asyncio.wait({reading}, timeout=GRACE_SECONDS)
    finally:
        if process.stdin is not None:
            process.stdin.close()  # which the guardian takes for our end: it kills what is left
        await process.wait()
        await tasks.end(reading)
