"""Ways to start a worker again. One per place where workers run; ``none`` leaves it to people."""

from __future__ import annotations

import socket

from batch_watchdog.restarters.base import Restarter
from batch_watchdog.restarters.docker import DockerRestarter
from batch_watchdog.restarters.local import LocalRestarter
from batch_watchdog.restarters.none import NoRestarter
from batch_watchdog.restarters.systemd import SystemdRestarter
from vllm_batch.settings import Settings

__all__ = ["Restarter", "open_restarter"]


def open_restarter(settings: Settings) -> Restarter:
    """Return the restarter that the settings name."""
    match settings.watchdog_restarter:
        case "none":
            return NoRestarter()
        case "local":
            return LocalRestarter(settings.home, host=socket.gethostname())
        case "systemd":
            return SystemdRestarter(settings.watchdog_restart_target, host=socket.gethostname())
        case "docker":
            return DockerRestarter(settings.watchdog_restart_target)
