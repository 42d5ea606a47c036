"""Docker, compose included: ``docker restart <container>`` through the engine's own command."""

from __future__ import annotations

from batch_watchdog.restarters.base import Attempt, run
from vllm_batch.fleet import WorkerView

DEFAULT_TARGET = "{name}"


class DockerRestarter:
    """Knows a worker's container by its name; a worker that has none here is not ours."""

    def __init__(self, target: str) -> None:
        self._target = target or DEFAULT_TARGET

    def container_of(self, worker: WorkerView) -> str:
        """Return the worker's container."""
        return self._target.replace("{name}", worker.name)

    async def reaches(self, worker: WorkerView) -> bool:
        """Whether this engine has the container, running or not."""
        container = self.container_of(worker)
        found = await run(("docker", "container", "inspect", "--format", "{{.Id}}", container))
        return found.done

    async def restart(self, worker: WorkerView) -> Attempt:
        """Restart the container: what is left in it is killed, a stopped one is started."""
        return await run(("docker", "restart", "-t", "5", self.container_of(worker)))
