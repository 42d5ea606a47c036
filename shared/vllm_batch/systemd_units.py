"""Unit files for hosts that run the services under systemd. Pure: settings and paths in, text out.

A service says READY=1, STATUS= and WATCHDOG=1 itself (see `notify`), so systemd knows a process
that hangs from one that works, and ends it with everything it started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vllm_batch.settings import Settings

ENVIRONMENT_FILE = Path("/etc/vllm-batch/environment")
UNIT_FOLDER = Path("/etc/systemd/system")
ROLES = ("gateway", "orchestrator", "watchdog", "worker")
WATCHDOG_SECONDS = 60
RESTART_SECONDS = 2
START_SECONDS = 90
ENGINE_SLACK_SECONDS = 30
DRAIN_SLACK_SECONDS = 15
STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit file. ``start`` is what to enable: a template needs an instance."""

    name: str
    text: str
    start: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where and as whom the services run."""

    python: str
    user: str
    environment_file: Path = ENVIRONMENT_FILE


def units(roles: tuple[str, ...], settings: Settings, place: Place, *, worker: str) -> list[Unit]:
    """Return the unit files of ``roles``; ``worker``: the name to start this host's worker by."""
    makers: dict[str, Callable[[], Unit]] = {
        "gateway": lambda: _service("api", "HTTP API", ("batch_gateway", "api"), place),
        "orchestrator": lambda: _service(
            "orchestrator", "orchestrator", ("batch_gateway", "orchestrator"), place
        ),
        # Restarting units takes root, or a polkit rule of your own.
        "watchdog": lambda: _service(
            "watchdog", "watchdog", ("batch_watchdog",),
            Place(place.python, "root", place.environment_file),
            environment="VLLM_BATCH_WATCHDOG_RESTARTER=systemd",
        ),
        "worker": lambda: _worker(settings, place, worker),
    }  # fmt: skip
    return [makers[role]() for role in roles]


def _service(
    name: str, what: str, module: tuple[str, ...], place: Place, *, environment: str = ""
) -> Unit:
    unit = f"vllm-batch-{name}.service"
    text = _text(
        what, module, place, environment=environment, start_seconds=START_SECONDS,
        stop_seconds=STOP_SECONDS,
    )  # fmt: skip
    return Unit(unit, text, unit)


def _worker(settings: Settings, place: Place, worker: str) -> Unit:
    text = _text(
        "GPU worker %i",
        ("batch_gpu_worker",),
        place,
        environment="VLLM_BATCH_WORKER_NAME=%i",
        start_seconds=round(settings.engine_ready_seconds) + ENGINE_SLACK_SECONDS,
        stop_seconds=round(settings.drain_notice_seconds) + DRAIN_SLACK_SECONDS,
    )
    return Unit("vllm-batch-worker@.service", text, f"vllm-batch-worker@{worker}.service")


def _text(
    what: str,
    module: tuple[str, ...],
    place: Place,
    *,
    environment: str,
    start_seconds: int,
    stop_seconds: int,
) -> str:
    lines = [
        "[Unit]",
        f"Description=vllm-batch {what}",
        "Wants=network-online.target",
        "After=network-online.target",
        "# It is started again for ever; the watchdog knows a crash loop when it sees one.",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"User={place.user}",
        f"EnvironmentFile=-{_escaped(str(place.environment_file))}",
        *([f"Environment={environment}"] if environment else []),
        f"ExecStart={_quoted(place.python)} -m {' '.join(module)}",
        "Restart=always",
        f"RestartSec={RESTART_SECONDS}",
        f"WatchdogSec={WATCHDOG_SECONDS}",
        f"TimeoutStartSec={start_seconds}",
        "# SIGTERM goes to the service alone, which drains; then SIGKILL to all it has started.",
        "KillMode=mixed",
        f"TimeoutStopSec={stop_seconds}",
        "LimitNOFILE=65536",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    return "\n".join(lines)


def environment_text(variables: dict[str, str]) -> str:
    """Return an environment file with ``VLLM_BATCH_…`` variables, one a line."""
    lines = ["# Settings of the vllm-batch services on this host; see `vllm-batch config`."]
    for name, value in sorted(variables.items()):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'{name}="{text}"')
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(path: str) -> str:
    """Return a program's path as systemd reads it, which expands percents there but no dollars."""
    text = _escaped(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(sign in path for sign in " '\"") else text
