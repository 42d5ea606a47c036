"""systemd: ``systemctl restart <unit>``, for workers on the watchdog's own host."""

from __future__ import annotations

from batch_watchdog.restarters.base import Attempt, run
from vllm_batch.fleet import WorkerView

DEFAULT_TARGET = "vllm-batch-worker@{name}.service"


class SystemdRestarter:
    """Knows a worker's unit by its name. ``reset-failed`` first: a unit that hit its own start
    limit would refuse."""

    def __init__(self, target: str, *, host: str) -> None:
        self._target = target or DEFAULT_TARGET
        self._host = host

    def unit_of(self, worker: WorkerView) -> str:
        """Return the worker's unit."""
        return self._target.replace("{name}", worker.name)

    async def reaches(self, worker: WorkerView) -> bool:
        """Whether the worker ran on this host."""
        return worker.host == self._host

    async def restart(self, worker: WorkerView) -> Attempt:
        """Restart the unit; returns once systemd has queued the job."""
        unit = self.unit_of(worker)
        await run(("systemctl", "reset-failed", "--", unit))
        return await run(("systemctl", "restart", "--no-block", "--", unit))
