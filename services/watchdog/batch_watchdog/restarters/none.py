"""No restarter: workers are started again by something else, or by a person."""

from __future__ import annotations

from batch_watchdog.restarters.base import Attempt
from vllm_batch.fleet import WorkerView


class NoRestarter:
    """Reaches nobody."""

    async def reaches(self, worker: WorkerView) -> bool:
        """No."""
        del worker
        return False

    async def restart(self, worker: WorkerView) -> Attempt:
        """Nothing."""
        return Attempt(False, f"nothing here starts {worker.name} again")
