"""``vllm-batch systemd``: unit files for this host. Writes files only under ``install``."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_batch.errors import BatchError

if TYPE_CHECKING:
    from vllm_batch.systemd_units import Unit

app = typer.Typer(help="Unit files for systemd: print, install.", no_args_is_help=True)

GatewayOption = Annotated[bool, typer.Option("--gateway", help="The HTTP API.")]
OrchestratorOption = Annotated[bool, typer.Option("--orchestrator", help="The orchestrator.")]
WatchdogOption = Annotated[bool, typer.Option("--watchdog", help="The watchdog (as root).")]
WorkerOption = Annotated[bool, typer.Option("--worker", help="GPU workers, a template.")]
UserOption = Annotated[str, typer.Option("--run-as", help="User that the services run as.")]


class NotInstalled(BatchError):
    """The unit files cannot be written."""

    code = "units_not_installed"


@app.command(name="print")
def print_(
    gateway: GatewayOption = False,
    orchestrator: OrchestratorOption = False,
    watchdog: WatchdogOption = False,
    worker: WorkerOption = False,
    run_as: UserOption = "",
) -> None:
    """Print the unit files; all of them unless some are named."""
    for unit in _units(
        gateway=gateway, orchestrator=orchestrator, watchdog=watchdog, worker=worker, run_as=run_as
    ):
        print(f"# {unit.name}\n{unit.text}")


@app.command()
def install(
    gateway: GatewayOption = False,
    orchestrator: OrchestratorOption = False,
    watchdog: WatchdogOption = False,
    worker: WorkerOption = False,
    run_as: UserOption = "",
    root: Annotated[
        Path, typer.Option(help="Write under this folder instead of /, for an image.")
    ] = Path("/"),
) -> None:
    """Write the unit files, and the settings of this shell where there are none yet.

    Starts nothing; says what to type next.
    """
    from vllm_batch import systemd_units

    folder = _under(root, systemd_units.UNIT_FOLDER)
    environment = _under(root, systemd_units.ENVIRONMENT_FILE)
    found = _units(
        gateway=gateway, orchestrator=orchestrator, watchdog=watchdog, worker=worker, run_as=run_as
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unit in found:
            (folder / unit.name).write_text(unit.text, encoding="utf-8")
            print(f"wrote {folder / unit.name}")
        if not environment.exists():
            _write_environment(environment)
            print(f"wrote {environment}: look whether it says what you mean")
    except OSError as error:
        raise NotInstalled(f"{error.filename}: {error.strerror}; try it with sudo") from error
    if root == Path("/") and shutil.which("systemctl"):
        subprocess.run(("systemctl", "daemon-reload"), check=False)
    print(f"next: systemctl enable --now {' '.join(unit.start for unit in found)}")


def _write_environment(path: Path) -> None:
    """Keep what this shell has set: it may hold a password, so for root's eyes only."""
    from vllm_batch.systemd_units import environment_text

    # These are about this command, not about the services.
    left_out = {"VLLM_BATCH_LAUNCHER", "VLLM_BATCH_DEBUG", "VLLM_BATCH_WORKER_NAME"}
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("VLLM_BATCH_") and name not in left_out
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(environment_text(variables), encoding="utf-8")


def _units(
    *, gateway: bool, orchestrator: bool, watchdog: bool, worker: bool, run_as: str
) -> list[Unit]:
    from vllm_batch import systemd_units
    from vllm_batch.settings import Settings

    named = {
        "gateway": gateway, "orchestrator": orchestrator, "watchdog": watchdog, "worker": worker,
    }  # fmt: skip
    roles = tuple(role for role in systemd_units.ROLES if named[role]) or systemd_units.ROLES
    user = run_as or os.environ.get("SUDO_USER") or getpass.getuser()
    place = systemd_units.Place(python=sys.executable, user=user)
    name = os.environ.get("VLLM_BATCH_WORKER_NAME") or socket.gethostname()
    return systemd_units.units(roles, Settings(), place, worker=name)


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
