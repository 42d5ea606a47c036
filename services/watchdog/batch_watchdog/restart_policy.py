"""When a missed worker is started again, and when it is better left alone. Pure.

Everything follows from what the log says of a name: when its process ended, how often one of its
processes died within the window, and how often a restart was asked for since. So a watchdog that
was down, or a second one, comes to the same decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from vllm_batch.fleet import Name
from vllm_batch.settings import Settings

FORGOTTEN_SECONDS = 24 * 3600.0
"""A worker that has been away for longer is not missed any more."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again at ``until``."""

    until: datetime


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it now, for the ``attempt``-th time since it ended."""

    attempt: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It died, or did not come up, ``restarts`` times within the window: a crash loop."""

    restarts: int


Move = Leave | Wait | Restart | GiveUp


def next_move(name: Name, now: datetime, settings: Settings) -> Move:
    """Return what is to be done about ``name``."""
    worker = name.newest
    since = now - timedelta(seconds=settings.crash_loop_window_seconds)
    deaths = name.deaths_since(since)
    if name.crash_looping:
        return Leave()
    asked = [time for time in worker.restart_asked_at if worker.missed and time > since]
    failures = max(deaths, len(asked))
    if failures >= settings.crash_loop_restarts:
        return GiveUp(failures)
    if not worker.missed or worker.ended_at is None:
        return Leave()
    if now - worker.ended_at > timedelta(seconds=FORGOTTEN_SECONDS):
        return Leave()
    asked_after = [time for time in worker.restart_asked_at if time >= worker.ended_at]
    if asked_after:
        due = asked_after[-1] + _pause(deaths - 1 + len(asked_after), settings)
    else:
        grace = timedelta(seconds=settings.watchdog_restart_grace_seconds)
        due = worker.ended_at + max(grace, _pause(deaths - 1, settings))
    return Restart(len(asked_after) + 1) if now >= due else Wait(due)


def _pause(failures: int, settings: Settings) -> timedelta:
    """Return the pause before the next restart: doubles with each failure."""
    if failures <= 0:
        return timedelta(0)
    seconds = settings.watchdog_backoff_seconds * 2.0 ** min(failures - 1, 30)
    return timedelta(seconds=min(seconds, settings.watchdog_backoff_seconds_max))
