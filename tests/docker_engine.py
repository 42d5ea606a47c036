"""A Docker engine of the tests' own, with its own data, socket and networks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

READY_SECONDS = 30.0
_NO_NETWORKS = ("--iptables=false", "--ip6tables=false", "--bridge=none")


class DockerEngine:
    """``environment`` makes `docker` and `docker-compose` speak to it."""

    def __init__(self, folder: Path, *, networks: bool) -> None:
        self.folder = folder
        # The classic builder is part of the engine; BuildKit needs a program that not all have.
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{folder}/sock",
            "DOCKER_BUILDKIT": "0",
        }
        arguments = (
            "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
            "--pidfile", f"{folder}/pid", "-H", f"unix://{folder}/sock",
            *(() if networks else _NO_NETWORKS),
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(("dockerd", *arguments), stdout=log, stderr=log)

    def docker(self, *arguments: str, timeout_seconds: float = 60) -> str:
        """Return what the command printed. Raises RuntimeError with what it complained of."""
        return self.run("docker", *arguments, timeout_seconds=timeout_seconds)

    def run(self, *command: str, timeout_seconds: float) -> str:
        """Return what a program printed that speaks to this engine."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False,
            timeout=timeout_seconds,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def wait_ready(self) -> None:
        """Wait until it answers. Raises RuntimeError."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self.docker("version")
            except RuntimeError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)  # the condition is at another process
            else:
                return

    def started_at(self, container: str) -> str:
        """Return when the container's process was started; empty while it does not run."""
        state = self.docker("inspect", "--format", "{{.State.Running}} {{.State.StartedAt}}",
                            container)  # fmt: skip
        running, _, started = state.partition(" ")
        return started if running == "true" else ""

    def stop(self) -> None:
        """Remove all containers and end the engine."""
        if containers := self.docker("ps", "-aq").split():
            self.docker("rm", "-f", *containers)
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def docker_engine(*, networks: bool = False) -> Iterator[DockerEngine]:
    """Run an engine; the test is skipped where none can be started."""
    if os.geteuid() != 0 or not shutil.which("dockerd") or not shutil.which("docker"):
        pytest.skip("no Docker engine can be started here: it takes root and docker.io")
    if Path("/var/run/docker.sock").is_socket():
        pytest.skip("another Docker engine runs here; a second one would take over its networks")
    folder = Path(tempfile.mkdtemp(prefix="dockerd-"))  # a socket's path must be short
    started = DockerEngine(folder, networks=networks)
    try:
        try:
            started.wait_ready()
        except RuntimeError as error:
            pytest.skip(f"the Docker engine does not start here: {error}")
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()
        shutil.rmtree(folder, ignore_errors=True)
