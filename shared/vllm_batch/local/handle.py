"""One service of a running stack, for tests and commands that look at it or hurt it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from vllm_batch.errors import StackError
from vllm_batch.local.spec import ServiceState, ServiceStatus

if TYPE_CHECKING:
    from vllm_batch.local.stack import LocalStack


class ServiceHandle:
    """One service of a running stack."""

    def __init__(self, stack: LocalStack, name: str) -> None:
        self._stack = stack
        self.name = name

    @property
    def status(self) -> ServiceStatus:
        """State, pid, port, number of restarts and what the service says of itself."""
        return next(s for s in self._stack.services() if s.name == self.name)

    @property
    def pid(self) -> int:
        """The process id. Raises StackError while it is not running."""
        pid = self.status.pid
        if pid is None:
            raise StackError(f"{self.name} is not running")
        return pid

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the process, which is restarted if it dies; returns the pid."""
        pid = self.pid
        os.kill(pid, number)
        return pid

    def kill_group(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the process and those it started in its group; returns the pid."""
        pid = self.pid
        os.killpg(pid, number)
        return pid

    def hold(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and keep it down until ``release``."""
        self._stack.on_loop(lambda supervisor: supervisor.service(self.name).hold(number))

    def release(self) -> None:
        """Start a held service again."""
        self._stack.on_loop(lambda supervisor: supervisor.service(self.name).release())

    def wait_ready(self, timeout_seconds: float = 120.0, *, other_than: int | None = None) -> int:
        """Wait until it is ready, with a pid ``other_than`` the given one; returns the pid."""

        def ready() -> int | None:
            now = self.status
            return now.pid if now.state is ServiceState.READY and now.pid != other_than else None

        return self._stack.wait_for(ready, timeout_seconds, f"{self.name} to be ready")

    def wait_restarted(self, old_pid: int, timeout_seconds: float = 120.0) -> int:
        """Wait until it is ready again under another pid than ``old_pid``; returns the new pid."""
        return self.wait_ready(timeout_seconds, other_than=old_pid)

    def wait_state(self, state: ServiceState, timeout_seconds: float = 120.0) -> ServiceStatus:
        """Wait until it is in ``state``; returns its status then."""
        return self._stack.wait_for(
            lambda: self.status if self.status.state is state else None,
            timeout_seconds,
            f"{self.name} to be {state}",
        )

    def log_text(self) -> str:
        """Return what its current log file holds."""
        path = self._stack.home.log_of(self.name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
