"""Real Prometheus and promtool for tests: of the machine, or unpacked from Debian's package.

The package is not installed, as that would start a server: its programs stand alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from vllm_batch.local.engine_env import cache_dir, waiting_lock

_SECONDS = 300.0


def find(name: str) -> Path | None:
    """Return the program ``name``; None where there is neither it nor a Debian to get it from."""
    if found := shutil.which(name):
        return Path(found)
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        return None
    folder = cache_dir() / "prometheus"
    program = folder / "usr" / "bin" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.with_suffix(".lock"), "Prometheus", print):
        if not program.exists():
            _unpack(folder)
    return program


def _unpack(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        _run(folder, "apt-get", "download", "prometheus")
    except subprocess.CalledProcessError:
        if os.geteuid() != 0:
            raise
        _run(folder, "apt-get", "update", "-q")  # a new machine has no lists of packages
        _run(folder, "apt-get", "download", "prometheus")
    (package,) = folder.glob("prometheus_*.deb")
    _run(folder, "dpkg-deb", "-x", str(package), str(folder))
    package.unlink()


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_SECONDS)
