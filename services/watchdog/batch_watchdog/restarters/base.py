"""What a restarter is, and running the command it hands over to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_batch.fleet import WorkerView

COMMAND_SECONDS = 120.0
OUTPUT_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of it; ``detail`` is for the log."""

    done: bool
    detail: str


class Restarter(Protocol):
    """Starts workers again. Never raises: what goes wrong is in the attempt."""

    async def reaches(self, worker: WorkerView) -> bool:
        """Tell whether this worker is one that ``restart`` could start again, now."""
        ...

    async def restart(self, worker: WorkerView) -> Attempt:
        """Start it again; whatever is left of its process is ended first."""
        ...


async def run(argv: Sequence[str]) -> Attempt:
    """Run a command to its end, COMMAND_SECONDS at most."""
    shown = " ".join(argv)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return Attempt(False, f"{shown}: {error}")
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Attempt(False, f"{shown}: no end within {COMMAND_SECONDS:g} s")
    said = output.decode(errors="replace").strip()[-OUTPUT_CHARACTERS_MAX:]
    if process.returncode == 0:
        return Attempt(True, said or shown)
    return Attempt(False, f"{shown}: exit status {process.returncode}: {said}")
