"""What the supervisor is told about a service, and what it tells about it: plain data."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

Probe = Callable[[], Awaitable[bool]]


class ServiceState(StrEnum):
    """Life of a supervised service.

    waiting → starting → ready → (backoff | crash-looping) → starting …; held while a person has
    stopped it; stopping → stopped at the end.
    """

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    CRASH_LOOPING = "crash-looping"
    HELD = "held"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ServiceSpec:
    """One program to keep running."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    port: int | None = None
    metrics_port: int | None = None
    probe: Probe | None = None
    """Tells whether the service answers; None: it sends READY=1 itself (sd_notify)."""
    stuck: Probe | None = None
    """Asked now and then once ``probe`` has said yes; yes: only a restart makes it work again."""
    prepare: Callable[[], None] | None = None
    """Runs before every start, for instance to remove a stale pid file."""
    ready_seconds: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends it when the supervisor is gone."""
    uid: int = -1
    gid: int = -1


@dataclass(frozen=True)
class Backoff:
    """How soon a service that died is started again. Times in seconds."""

    first: float = 0.25
    highest: float = 10.0
    stable: float = 10.0
    """Ready for this long: the next death counts as the first one."""
    crash_loop_after: int = 5
    """This many deaths in a row are shown as a crash loop."""

    def delay(self, deaths: int, unit_random: float) -> float:
        """Return the pause after the ``deaths``-th death in a row: doubling, ±30 % jitter."""
        plain: float = min(self.highest, self.first * 2.0 ** min(deaths - 1, 30))
        return min(self.highest, plain * (0.7 + 0.6 * unit_random))


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it is now."""

    name: str
    state: ServiceState
    pid: int | None
    port: int | None
    restarts: int
    since: float
    """Unix time of the last change of state."""
    status: str
    """What the service says of itself (STATUS=), or why it died."""
    metrics_port: int | None = None
    started: float | None = None
    """Creation time of the process as the kernel has it, to tell a re-used pid."""
