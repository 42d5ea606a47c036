"""The embedded stack: its supervisor starts again what died; we end what is alive and silent.

Reads ``<home>/state.json``. A process is only killed if it is the very one that the supervisor
started, by pid and start time, on this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from batch_watchdog.restarters.base import Attempt
from vllm_batch.fleet import WorkerView
from vllm_batch.local import state
from vllm_batch.local.home import Home
from vllm_batch.local.leftovers import is_same
from vllm_batch.local.state import ServiceRecord


class LocalRestarter:
    """Ends workers that hang, so that the supervisor of the same home starts them anew."""

    def __init__(self, home: Path, *, host: str) -> None:
        self._state_file = Home.at(home).state_file
        self._host = host

    async def reaches(self, worker: WorkerView) -> bool:
        """Whether the worker's own process still runs under this home's supervisor."""
        return await asyncio.to_thread(self._record_of, worker) is not None

    async def restart(self, worker: WorkerView) -> Attempt:
        """Kill the process."""
        return await asyncio.to_thread(self._kill, worker)

    def _record_of(self, worker: WorkerView) -> ServiceRecord | None:
        if worker.host != self._host:
            return None
        stack = state.read(self._state_file)
        found = stack.service(worker.name) if stack.is_alive else None
        if found is None or found.pid != worker.pid or not is_same(worker.pid, found.started):
            return None
        return found

    def _kill(self, worker: WorkerView) -> Attempt:
        if self._record_of(worker) is None:
            return Attempt(True, "its process has ended; the supervisor starts another")
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        return Attempt(True, f"killed process {worker.pid}; the supervisor starts another")
