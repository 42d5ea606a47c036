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


def settings_of(home: Path | None) -> Settings:
    """Return where NATS and Postgres are, and keep the log to warnings on stderr.

    The environment wins (``VLLM_BATCH_NATS_URL`` …: a deployment elsewhere); else it is the
    embedded stack of this home.

    Raises:
        NotRunning: neither is there.
    """
    from vllm_batch.telemetry import configure_logs

    place = home_of(home)
    found = state.read(place.state_file)
    values: dict[str, Any] = {"home": place.root}
    if not os.environ.get("VLLM_BATCH_NATS_URL"):
        in_file = Settings(home=place.root).model_fields_set
        if found.is_alive:
            values["nats_url"] = found.nats_url
        elif "nats_url" not in in_file:
            raise NotRunning(
                f"no stack runs on {place.root}; start one with `vllm-batch up --detach`, or set "
                "VLLM_BATCH_NATS_URL"
            )
    if not os.environ.get("VLLM_BATCH_POSTGRES_DSN") and found.is_alive:
        values["postgres_dsn"] = SecretStr(found.postgres_dsn)
    settings = Settings(**values)
    if not os.environ.get("VLLM_BATCH_LOG_LEVEL"):
        settings = settings.model_copy(update={"log_level": "WARNING"})
    configure_logs(settings, service="cli")
    return settings
