"""docker-compose.yml on an engine of the tests' own; to the oracle it looks like a stack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tests.compose.stand_ins import ROOT
from tests.docker_engine import DockerEngine
from vllm_batch.local import ports
from vllm_batch.local.programs import environment_of
from vllm_batch.settings import Settings

COMPOSE = str(Path(sys.executable).with_name("docker-compose"))
PROJECT = "vllm-batch"
# Small enough that a takeover is a matter of seconds, large enough that much is in flight. The
# engine is simulated: images with vLLM in them cannot be had everywhere.
SETTINGS: dict[str, Any] = {
    "engine": "simulated",
    "model": "simulated-model",
    "engine_max_num_seqs": 16,
    "flush_results": 32,
    "flush_seconds": 0.5,
    "chunk_requests_max": 64,
    "simulated_latency_seconds": 0.1,
    "simulated_journal": "/var/lib/vllm-batch/journal",
    "heartbeat_seconds": 0.5,
    "lease_seconds": 3.0,
    "leader_lease_seconds": 1.5,
}
SERVICES = ("api", "orchestrator", "watchdog", "labelstudio-bridge", "admin-ui", "cpu-worker")
CLUSTER = "docker-compose.cluster.yml"
CLUSTER_SERVICES = (*SERVICES, "orchestrator-2", "cpu-worker-2")
COMMAND_SECONDS = 1800.0  # builds of all images on a busy machine
CONDITION_SECONDS = 180.0


class Container:
    """The container of one service."""

    def __init__(self, deployment: Deployment, service: str) -> None:
        self._engine = deployment.engine
        self.name = f"{PROJECT}-{service}-1"

    def inspect(self) -> dict[str, Any]:
        """Return what the engine knows about it."""
        found: list[dict[str, Any]] = json.loads(self._engine.docker("inspect", self.name))
        return found[0]

    @property
    def address(self) -> str:
        """Its address in the network that leads nowhere; this machine is in it, too."""
        networks = self.inspect()["NetworkSettings"]["Networks"]
        address: str = networks[f"{PROJECT}_inside"]["IPAddress"]
        return address

    def kill(self) -> None:
        """End it as a crash would; returns when the engine has started it again."""
        before = self.inspect()["State"]
        os.kill(before["Pid"], signal.SIGKILL)
        wait_until(lambda: self._engine.started_at(self.name) not in {"", before["StartedAt"]})

    def wait_ready(self) -> None:
        """Wait until it runs, and is healthy where it can tell."""

        def ready() -> bool:
            state = self.inspect()["State"]
            health = state.get("Health", {"Status": "healthy"})
            return bool(state["Running"] and health["Status"] == "healthy")

        wait_until(ready)


class Deployment:
    """What a user has after ``deploy/make-secrets``. ``cluster``: with the second file, too."""

    def __init__(self, engine: DockerEngine, folder: Path, *, cluster: bool = False) -> None:
        self.engine = engine
        self.api_port, self._admin_port = ports.pick(None), ports.pick(None)
        self._replicas = 3 if cluster else 1
        self._secrets = folder / "secrets"
        self.make_secrets()
        environment = folder / "env"
        environment.write_text(
            f"COMPOSE_PROFILES=cpu\nSECRETS_DIR={self._secrets}\n"
            f"API_PORT={self.api_port}\nADMIN_PORT={self._admin_port}\n"
            "WORKER_MEMORY=1g\nWORKER_SHARED_MEMORY=64m\n"
        )
        override = folder / "simulated.json"  # JSON is YAML
        override.write_text(json.dumps(_override(CLUSTER_SERVICES if cluster else SERVICES)))
        files = ["docker-compose.yml", *((CLUSTER,) if cluster else ()), str(override)]
        self._command = [COMPOSE, "--project-directory", str(ROOT), "--env-file", str(environment)]
        for file in files:
            self._command += ["--file", str(ROOT / file)]

    def compose(self, *arguments: str) -> str:
        """Return what a command of Compose printed. Raises RuntimeError."""
        return self.engine.run(*self._command, *arguments, timeout_seconds=COMMAND_SECONDS)

    def up(self, *arguments: str) -> None:
        """Start what is not running, or not as it should; returns when all of it is ready."""
        self.compose("up", "--detach", "--wait", *arguments)

    def cli(self, *words: str, volume: str | None = None) -> str:
        """Return what a command of the operator printed; ``volume``: HERE:THERE."""
        mounted = () if volume is None else ("--volume", volume)
        return self.compose("run", "--rm", "--no-TTY", *mounted, "cli", *words)

    def make_secrets(self) -> None:
        """Make the secrets that are missing, as a user does."""
        subprocess.run((ROOT / "deploy" / "make-secrets", self._secrets), check=True)

    def write_secret(self, name: str, text: str) -> None:
        """Replace one of the files among the secrets that a user writes."""
        (self._secrets / name).write_text(text)

    def secret(self, name: str) -> str:
        """Return one of the secrets."""
        return (self._secrets / name).read_text()

    def volume(self, name: str) -> Path:
        """Return where a volume is on this machine."""
        where = self.engine.docker(
            "volume", "inspect", "--format", "{{.Mountpoint}}", f"{PROJECT}_{name}"
        )
        return Path(where)

    # What the oracle asks of a stack

    @property
    def api_url(self) -> str:
        """Base URL of the API."""
        return f"http://127.0.0.1:{self.api_port}/v1"

    @property
    def admin_url(self) -> str:
        """Where the admin UI is on this machine."""
        return f"http://127.0.0.1:{self._admin_port}"

    @property
    def api_key(self) -> str:
        """The key that a user finds among the secrets."""
        return self.secret("api_key")

    @property
    def settings(self) -> Settings:
        """Settings with which this machine reaches what is inside."""
        # The first server's address, also where there are three.
        nats, dsn = self.secret("vllm_batch_nats_url"), self.secret("vllm_batch_postgres_dsn")
        return Settings(
            **SETTINGS,
            events_replicas=self._replicas,
            nats_url=nats.replace("@nats:", f"@{self.service('nats').address}:"),
            postgres_dsn=SecretStr(
                dsn.replace("@postgres:", f"@{self.service('postgres').address}:")
            ),
            blob_url=self.volume("blobs").as_uri(),
        )

    def services(self) -> list[Container]:
        """Return the containers that keep running."""
        names = self.compose("ps", "--services").split()
        return [self.service(name) for name in names]

    def service(self, name: str) -> Container:
        """Return one service's container."""
        return Container(self, name.removeprefix(f"{PROJECT}-").removesuffix("-1"))


def _override(ours: Sequence[str]) -> dict[str, Any]:
    """Return what differs from what a user runs: the engine, short times, nothing pulled."""
    services: dict[str, Any] = {name: {"environment": environment_of(SETTINGS)} for name in ours}
    services["postgres"] = {"pull_policy": "never"}
    return {"services": services}


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do. Raises TimeoutError."""
    deadline = time.monotonic() + CONDITION_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited too long")
        time.sleep(0.05)
