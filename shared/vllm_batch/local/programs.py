"""How the supervisor runs the services of this distribution: their commands and environment.

Knows the services by module name only; the vocabulary imports none of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from vllm_batch.local.spec import ServiceSpec
from vllm_batch.settings import Settings

_START_SECONDS = 120.0
_ENGINE_SLACK_SECONDS = 30.0
_DRAIN_SLACK_SECONDS = 5.0


def api_spec(settings: Settings, environment: Mapping[str, str]) -> ServiceSpec:
    """Return the gateway's HTTP API."""
    return ServiceSpec(
        name="api",
        argv=(sys.executable, "-m", "batch_gateway", "api"),
        env=environment,
        port=settings.api_port,
        ready_seconds=_START_SECONDS,
    )


def orchestrator_spec(name: str, environment: Mapping[str, str]) -> ServiceSpec:
    """Return a planner, scheduler and finalizer in one process."""
    return ServiceSpec(
        name=name,
        argv=(sys.executable, "-m", "batch_gateway", "orchestrator"),
        env=environment,
        ready_seconds=_START_SECONDS,
    )


def watchdog_spec(name: str, environment: Mapping[str, str]) -> ServiceSpec:
    """Return a watchdog; the supervisor itself starts again what died."""
    return ServiceSpec(
        name=name,
        argv=(sys.executable, "-m", "batch_watchdog"),
        env={**environment_of({"watchdog_restarter": "local"}), **environment},
        ready_seconds=_START_SECONDS,
    )


def bridge_spec(settings: Settings, environment: Mapping[str, str]) -> ServiceSpec:
    """Return the Label Studio bridge."""
    return ServiceSpec(
        name="labelstudio-bridge",
        argv=(sys.executable, "-m", "batch_labelstudio"),
        env=environment,
        port=settings.bridge_port,
        ready_seconds=_START_SECONDS,
    )


def admin_ui_spec(settings: Settings, environment: Mapping[str, str]) -> ServiceSpec:
    """Return the admin web UI."""
    return ServiceSpec(
        name="admin-ui",
        argv=(sys.executable, "-m", "batch_admin"),
        env=environment,
        port=settings.admin_port,
        ready_seconds=_START_SECONDS,
    )


def worker_spec(name: str, settings: Settings, environment: Mapping[str, str]) -> ServiceSpec:
    """Return a GPU worker, which starts its engine itself."""
    return ServiceSpec(
        name=name,
        argv=(sys.executable, "-m", "batch_gpu_worker"),
        env={**environment, **environment_of({"worker_name": name})},
        ready_seconds=settings.engine_ready_seconds + _ENGINE_SLACK_SECONDS,
        stop_seconds=settings.drain_notice_seconds + _DRAIN_SLACK_SECONDS,
    )


def trainer_spec(environment: Mapping[str, str]) -> ServiceSpec:
    """Return the trainer, which fine-tunes in the engine's environment."""
    return ServiceSpec(
        name="trainer",
        argv=(sys.executable, "-m", "batch_gpu_worker", "trainer"),
        env={**environment, **environment_of({"worker_name": "trainer"})},
        ready_seconds=_START_SECONDS,
    )


def environment_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as the environment variables that a service reads them from."""
    return {f"VLLM_BATCH_{name.upper()}": _as_text(value) for name, value in values.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value)
