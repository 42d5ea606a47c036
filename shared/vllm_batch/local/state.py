"""``<home>/state.json``: what runs where, for `status`, `down`, `env` and the next start.

Written by the supervisor alone, atomically; read by anybody. Ports stay the same between runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from vllm_batch.local.leftovers import is_same


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One service as the supervisor last saw it."""

    name: str
    state: str
    pid: int | None = None
    started: float | None = None
    port: int | None = None
    metrics_port: int | None = None
    restarts: int = 0
    since: float = 0.0
    status: str = ""


class StackState(msgspec.Struct, frozen=True, kw_only=True):
    """One stack as its supervisor last saw it."""

    pid: int = 0
    started: float | None = None
    state: str = "stopped"
    api_url: str = ""
    engine: str = ""
    model: str = ""
    model_name: str = ""
    nats_url: str = ""
    postgres_dsn: str = ""
    ports: dict[str, int] = {}
    services: list[ServiceRecord] = []

    @property
    def is_alive(self) -> bool:
        """Whether its supervisor still runs."""
        return self.pid > 0 and is_same(self.pid, self.started)

    def service(self, name: str) -> ServiceRecord | None:
        """Return the record of service ``name``."""
        return next((s for s in self.services if s.name == name), None)


def read(path: Path) -> StackState:
    """Return the recorded state; an empty one where there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StackState)
    except (OSError, msgspec.DecodeError):
        return StackState()


def write(path: Path, state: StackState) -> None:
    """Replace the recorded state."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it has passwords
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
    new.replace(path)
