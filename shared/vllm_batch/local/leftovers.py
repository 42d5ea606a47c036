"""Finds and ends processes that an earlier stack on the same home, or a dead service, left behind.

Every child inherits ``VLLM_BATCH_STACK_MARK=<home>:<service>`` in its environment. Whoever holds
the home's lock knows that a marked process it did not start is a leftover. Programs that overwrite
their environment for a nicer process title are found by the pid and start time in the state file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

MARK_VARIABLE = "VLLM_BATCH_STACK_MARK"
_PROC = Path("/proc")
_START_TIME_SLACK_SECONDS = 0.05
_PAUSE_SECONDS = 0.005
END_SECONDS = 2.0
"""Longest wait for killed processes to be gone: a busy machine takes a moment to bury them."""


def end_marked(mark: str) -> list[int]:
    """SIGKILL every process marked ``mark`` or ``mark:…`` but the caller; returns their pids.

    Their process groups go with them: an engine's parts overwrite their environment for a nicer
    title and cannot be found by it, but they stay in the group of the one that started them.
    Python's trackers of shared memory are left alone: when their clients are dead they remove what
    those left in /dev/shm, hundreds of megabytes with vLLM, and end by themselves. Returns when the
    others are gone, or after END_SECONDS.
    """
    found = {pid for pid in marked(mark) if pid != os.getpid()}
    groups = {group for pid in found if (group := _group_of(pid)) is not None} - {os.getpgrp()}
    if groups:
        found |= {pid for pid in psutil.pids() if _group_of(pid) in groups}
    victims = {pid for pid in found if not _is_tracker(pid)}
    for pid in victims:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline and any(started_at(pid) is not None for pid in victims):
        time.sleep(_PAUSE_SECONDS)
    return sorted(victims)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _is_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def marked(mark: str) -> list[int]:
    """Return the pids of the processes marked ``mark`` or ``mark:<service>``."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
                variables = (entry / "environ").read_bytes().split(b"\0")
                if any(v == wanted or v.startswith(wanted + b":") for v in variables):
                    found.append(int(entry.name))
    return found


def started_at(pid: int) -> float | None:
    """Return the Unix time at which ``pid`` was created, None when it has ended.

    One that nobody has reaped yet (containers often have no init that does) has ended.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same(pid: int, started: float | None) -> bool:
    """Tell whether ``pid`` still is the process that was created at ``started``."""
    now = started_at(pid)
    return (
        now is not None and started is not None and abs(now - started) < _START_TIME_SLACK_SECONDS
    )


def end_recorded(processes: Iterable[tuple[int, float | None]]) -> list[int]:
    """SIGKILL the groups of recorded children that are still the same; returns their pids."""
    ended = []
    for pid, started in processes:
        if is_same(pid, started):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
                ended.append(pid)
    return ended
