"""Settings for commands that talk to the servers themselves: a running stack's, or the user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from vllm_batch.cli.options import home_of
from vllm_batch.cli.output import NotRunning
from vllm_batch.local import state
from vllm_batch.settings import Settings


def is_elsewhere(home: Path | None) -> bool:
    """Tell whether the settings name a NATS server other than that of the home's embedded stack.

    The environment does, whatever runs here; a secret or ``settings.toml`` while no stack runs.
    """
    if os.environ.get("VLLM_BATCH_NATS_URL"):
        return True
    place = home_of(home)
    if state.read(place.state_file).is_alive:
        return False
    return "nats_url" in Settings(home=place.root).model_fields_set


def settings_of(home: Path | None) -> Settings:
    """Return where NATS and Postgres are, and keep the log to warnings on stderr.

    Those of a deployment elsewhere if there is one (``is_elsewhere``), else the embedded stack's.

    Raises:
        NotRunning: neither is there.
    """
    from vllm_batch.telemetry import configure_logs

    place = home_of(home)
    found = state.read(place.state_file)
    values: dict[str, Any] = {"home": place.root}
    if not is_elsewhere(home):
        if not found.is_alive:
            raise NotRunning(
                f"no stack runs on {place.root}; start one with `vllm-batch up --detach`, or set "
                "VLLM_BATCH_NATS_URL"
            )
        values["nats_url"] = found.nats_url
    if not os.environ.get("VLLM_BATCH_POSTGRES_DSN") and found.is_alive:
        values["postgres_dsn"] = SecretStr(found.postgres_dsn)
    settings = Settings(**values)
    if not os.environ.get("VLLM_BATCH_LOG_LEVEL"):
        settings = settings.model_copy(update={"log_level": "WARNING"})
    configure_logs(settings, service="cli")
    return settings
