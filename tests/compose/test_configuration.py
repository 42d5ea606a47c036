"""What Compose makes of our files; takes no engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.compose.deployment import CLUSTER, COMPOSE
from tests.compose.stand_ins import ROOT

pytestmark = pytest.mark.skipif(
    not Path(COMPOSE).exists(), reason="Docker Compose is not installed beside this Python"
)


def configured(secrets: Path, *more: str, **variables: str) -> dict[str, Any]:
    """Return all services as Compose would run them, with more files after the first."""
    files = [
        word for file in ("docker-compose.yml", *more) for word in ("--file", str(ROOT / file))
    ]
    done = subprocess.run(
        (COMPOSE, "--profile", "*", "--env-file", os.devnull, *files, "config", "--format", "json"),
        env={**os.environ, "SECRETS_DIR": str(secrets), **variables},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.mark.parametrize("more", [(), (CLUSTER,)])
def test_credentials_of_the_bucket_are_for_who_has_blobs(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / "object_store.env").write_text("AWS_SECRET_ACCESS_KEY=of-a-test\n")
    services = configured(tmp_path, *more)
    told = {name for name, service in services.items() if "of-a-test" in json.dumps(service)}
    with_blobs = {
        name
        for name, service in services.items()
        if any(volume["target"] == "/srv/blobs" for volume in service.get("volumes", ()))
    }
    assert told == with_blobs
    assert told >= {"api", "orchestrator", "cli", "admin-ui", "labelstudio-bridge", "gpu-worker"}
    assert told.isdisjoint({"setup", "watchdog", "nats", "postgres", "label-studio", "grafana"})


def test_nats_is_published_on_loopback_and_only_where_it_is_asked_for(tmp_path: Path) -> None:
    assert "ports" not in configured(tmp_path)["nats"]
    nats = configured(tmp_path, "docker-compose.nats.yml", NATS_PORT="14222")["nats"]
    (port,) = nats["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "14222", 4222)
    assert set(nats["networks"]) == {"inside", "outside"}
