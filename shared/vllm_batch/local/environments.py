"""The environment of each service of the embedded stack: its settings, and no more secrets than it
needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_batch.local.home import Home
from vllm_batch.local.nats import nats_url
from vllm_batch.local.programs import environment_of
from vllm_batch.messaging.permissions import Role

_FOREIGN: dict[Role, tuple[str, ...]] = {
    Role.WORKER: ("secret_key", "label_studio_webhook_secret", "postgres_dsn"),
    Role.TRAINER: ("secret_key", "label_studio_webhook_secret", "postgres_dsn"),
    Role.WATCHDOG: ("secret_key", "label_studio_webhook_secret", "postgres_dsn"),
    Role.BRIDGE: ("secret_key", "postgres_dsn"),
}
"""Secrets that a service has no use for."""


@dataclass(frozen=True)
class Environments:
    """``settings``: of all services; ``extra``: variables that win over everything.

    ``nats_port``: of our NATS, where each service is a user of its own; None: the settings say
    where NATS is and as whom to connect.
    """

    home: Home
    settings: Mapping[str, Any]
    extra: Mapping[str, str] = field(default_factory=dict)
    nats_port: int | None = None

    def of(self, role: Role, *, key_file: Path | None = None) -> dict[str, str]:
        """Return a service's environment. ``key_file`` has the API key that it calls us with."""
        foreign = _FOREIGN.get(role, ())
        values = {name: value for name, value in self.settings.items() if name not in foreign}
        if self.nats_port is not None:
            values["nats_url"] = nats_url(self.home, self.nats_port, role)
        if key_file is not None:
            values.setdefault("gateway_api_key", key_file.read_text(encoding="utf-8").strip())
        return {**environment_of(values), **self.extra}
