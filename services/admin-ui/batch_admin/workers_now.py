"""What the pages say of the workers: the log's view of each name, with what its pulse adds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from batch_admin.live import Live, Pulse
from vllm_batch.fleet import Name, WorkerView

SILENT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WorkerNow:
    """A worker's newest process. ``age_seconds`` is None where no pulse was ever felt."""

    name: str
    view: WorkerView
    state: str
    pulse: Pulse | None
    age_seconds: float | None
    crash_looping: bool
    deaths: int

    @property
    def needs_attention(self) -> bool:
        """Whether somebody should look."""
        return self.state in {"lost", "crash-looping", "failed", "silent"}


def workers(live: Live, now: datetime) -> list[WorkerNow]:
    """Return the newest process of every name, but those that left on purpose."""
    found = [_now(live, name, now) for name in live.fleet.names.values()]
    there = [one for one in found if one.state != "stopped" or one.view.missed]
    return sorted(there, key=lambda one: one.name)


def _now(live: Live, name: Name, now: datetime) -> WorkerNow:
    pulse = live.pulses.get(name.newest.worker_id)
    age = None if pulse is None else max(0.0, (now - pulse.heard_at).total_seconds())
    return WorkerNow(
        name.name, name.newest, _state(name, pulse, age), pulse, age, name.crash_looping,
        len(name.deaths),
    )  # fmt: skip


def _state(name: Name, pulse: Pulse | None, age: float | None) -> str:
    worker = name.newest
    if worker.ended_at is not None:
        return "crash-looping" if name.crash_looping else worker.state
    if age is not None and age > SILENT_SECONDS:
        return "silent"
    if pulse is not None:
        return pulse.last.state
    return "starting" if worker.state == "started" else worker.state
