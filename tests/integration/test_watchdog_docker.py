"""Workers in containers: against a real Docker engine where one can be started, and a recording of
what is asked of it everywhere."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docker_engine import DockerEngine, docker_engine
from tests.facts import append
from tests.integration.test_watchdog_process import watchdog_process
from tests.worker_bench import until

from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import WorkerLost, WorkerRestartRequested, WorkerStarted
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

IMAGE = "stand-in:1"


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    with docker_engine() as started:
        archive = started.folder / "image.tar"
        with tarfile.open(archive, "w") as tar:  # one static program is all it takes
            tar.add(Path(sys.executable).with_name("nats-server"), "server")
        started.docker("import", str(archive), IMAGE)
        yield started


@pytest.fixture
def docker_settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "heartbeat_seconds": 0.1,
            "lease_seconds": 1.0,
            "watchdog_restarter": "docker",
            "watchdog_restart_target": "vb-{name}",
            "watchdog_restart_grace_seconds": 0.2,
        }
    )


async def lose(store: JetStreamEventStore, name: str) -> None:
    worker_id = WorkerId(f"worker_{name}")
    started = WorkerStarted(
        worker_id=worker_id, name=name, host="container", pid=1, engine="simulated", version="1"
    )
    await append(store, started, WorkerLost(worker_id=worker_id, reason="silent"))


async def test_containers_of_lost_workers_are_restarted(
    engine: DockerEngine,
    event_store: JetStreamEventStore,
    docker_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.environment["DOCKER_HOST"])
    for name in ("dead", "hanging", "well"):
        engine.docker("run", "-d", "--name", f"vb-{name}", "--network", "none", IMAGE, "/server")
    engine.docker("kill", "vb-dead")
    before = {name: engine.started_at(f"vb-{name}") for name in ("hanging", "well")}
    for name in ("dead", "hanging", "elsewhere"):
        await lose(event_store, name)
    async with watchdog_process(docker_settings):
        await until(lambda: engine.started_at("vb-dead") != "")
        await until(lambda: engine.started_at("vb-hanging") not in {"", before["hanging"]})
    assert engine.started_at("vb-well") == before["well"]
    asked = [
        recorded.event.aggregate_id()[0]
        async for batch in event_store.read(subjects.every(WorkerRestartRequested))
        for recorded in batch
    ]
    assert sorted(asked) == ["worker_dead", "worker_hanging"]


async def test_what_is_asked_of_docker(
    event_store: JetStreamEventStore, docker_settings: Settings, tmp_path: Path
) -> None:
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> "{calls}"\ncase "$*" in *missing*) exit 1;; esac\n'
    )
    program.chmod(0o755)
    await lose(event_store, "missing")
    await lose(event_store, "gpu0")
    async with watchdog_process(docker_settings, path=folder):
        await until(lambda: calls.exists() and "restart" in calls.read_text())
    lines = calls.read_text().splitlines()
    assert "container inspect --format {{.Id}} vb-gpu0" in lines
    assert [line for line in lines if line.startswith("restart")] == ["restart -t 5 vb-gpu0"]
