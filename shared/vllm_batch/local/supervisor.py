"""Runs the services in order and keeps them running; what started last stops first.

Owns the supervised services; its event loop belongs to the caller. Tells ``changed`` after every
change of any service, at most once per turn of the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from vllm_batch.errors import StackError
from vllm_batch.local.home import Home
from vllm_batch.local.service import SupervisedService
from vllm_batch.local.spec import Backoff, ServiceSpec, ServiceStatus


class Supervisor:
    """The services of one home."""

    def __init__(
        self,
        home: Home,
        *,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._home = home
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()  # noqa: S311  jitter, not secrets
        self._changed = changed
        self._announced = False
        self._services: dict[str, SupervisedService] = {}
        self._groups: list[list[str]] = []

    def announce(self, specs: Sequence[ServiceSpec]) -> None:
        """Show services as waiting before their turn comes."""
        socket_dir = self._home.socket_dir()
        for spec in specs:
            if spec.name in self._services:
                raise StackError(f"a service named {spec.name} is there already")
            self._services[spec.name] = SupervisedService(
                spec,
                mark=self._home.mark,
                log_path=self._home.log_of(spec.name),
                socket_dir=socket_dir,
                backoff=self._backoff,
                rng=self._rng,
                changed=self._announce_change,
            )
        self._announce_change()

    async def start(self, *names: str) -> None:
        """Start these together and wait until all are ready. Raises StackError if one fails."""
        self._groups.append(list(names))
        tasks = [asyncio.create_task(self._services[name].start()) for name in names]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Stop everything, the last started first; services started together stop together."""
        for group in reversed(self._groups):
            await asyncio.gather(*(self._services[name].stop() for name in group))
        self._groups.clear()

    def hurry(self) -> None:
        """Give nothing more time to end politely, the servers excepted: those are quick."""
        for service in self._services.values():
            if service.spec.probe is None:
                service.hurry()

    def service(self, name: str) -> SupervisedService:
        """Return one service. Raises KeyError for an unknown name."""
        return self._services[name]

    def statuses(self) -> list[ServiceStatus]:
        """Return every service as it is now, in starting order."""
        return [service.status for service in self._services.values()]

    def _announce_change(self) -> None:
        if not self._announced:
            self._announced = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._announced = False
        self._changed()
