"""Whether and why an engine ended: by itself, for want of memory, or because it was told to."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from vllm_batch.events import RestartReason

_DETAIL_CHARACTERS_MAX = 500
_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|hipErrorOutOfMemory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|No available memory for the cache blocks"
    r"|DefaultCPUAllocator: (?:can't|not enough memory)|std::bad_alloc"
)
_KILLED_STATUS = {-signal.SIGKILL, 128 + signal.SIGKILL}
_MEMORY_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class Death(msgspec.Struct, frozen=True):
    """The end of an engine that its worker outlives. ``swapped``: it gave way to another model."""

    reason: RestartReason | Literal["swapped"]
    detail: str


async def ended_within(process: asyncio.subprocess.Process, seconds: float) -> bool:
    """Tell whether the process ends within ``seconds``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await process.wait()
    return process.returncode is not None


def judge(status: int | None, last_words: Iterable[str], *, memory_kills: int = 0) -> Death:
    """Return why a server that nobody stopped has ended.

    ``memory_kills``: how many processes the kernel killed for want of memory while it ran.
    """
    for line in reversed(list(last_words)):
        if _OUT_OF_MEMORY.search(line):
            return Death("out_of_memory", line.strip()[:_DETAIL_CHARACTERS_MAX])
    if memory_kills > 0:
        how = "it" if status in _KILLED_STATUS else "a process of it, or near it,"
        return Death("out_of_memory", f"the kernel killed {how} for want of host memory")
    if status in _KILLED_STATUS:
        return Death("crashed", "killed with SIGKILL, by whom is unknown")
    return Death("crashed", f"ended with status {status}")


def memory_kills(root: Path = Path("/")) -> int:
    """Return how many processes the kernel has killed for want of memory, as far as it says.

    Those of our own control group where there is one, else those of the machine.
    """
    for path in (_own_group(root) / "memory.events", root / "proc/vmstat"):
        try:
            found = _MEMORY_KILLS.search(path.read_text())
        except (OSError, UnicodeDecodeError):
            continue
        if found:
            return int(found[1])
    return 0


def _own_group(root: Path) -> Path:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return root / "sys/fs/cgroup" / own.lstrip("/")
