"""The unit files: systemd itself reads them, and the services keep the protocol they promise."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_batch.local.programs import environment_of
from vllm_batch.settings import Settings
from vllm_batch.systemd_units import Place, Unit, environment_text, units

COMMAND = (sys.executable, "-m", "vllm_batch.cli", "systemd")
PLACE = Place(python=sys.executable, user="root")
NAMES = {
    "vllm-batch-api.service",
    "vllm-batch-orchestrator.service",
    "vllm-batch-watchdog.service",
    "vllm-batch-worker@.service",
}


def run(*arguments: str, expect: int = 0, **environment: str) -> str:
    done = subprocess.run(
        (*COMMAND, *arguments), env={**os.environ, **environment}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def analyzer() -> str:
    """``systemd-analyze``; ``vllm-batch test`` installs it where it may."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed")
    return found


def test_systemd_accepts_what_is_installed(analyzer: str, tmp_path: Path) -> None:
    said = run(
        "install", "--root", str(tmp_path), "--run-as", "root",
        VLLM_BATCH_NATS_URL="nats://10.0.0.1:4222", VLLM_BATCH_WORKER_NAME="gpu7",
    )  # fmt: skip
    folder = tmp_path / "etc/systemd/system"
    assert {path.name for path in folder.iterdir()} == NAMES
    assert "vllm-batch-worker@gpu7.service" in said
    done = subprocess.run(
        (analyzer, "verify", "--man=no", *map(str, folder.iterdir())),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "vllm-batch" in line]
    assert (done.returncode, complaints) == (0, [])
    environment = tmp_path / "etc/vllm-batch/environment"
    assert environment.stat().st_mode & 0o077 == 0
    assert 'VLLM_BATCH_NATS_URL="nats://10.0.0.1:4222"' in environment.read_text()
    assert "WORKER_NAME" not in environment.read_text()
    environment.write_text("mine\n")
    run("install", "--root", str(tmp_path), "--worker")
    assert environment.read_text() == "mine\n"


def test_systemd_would_complain(analyzer: str, tmp_path: Path) -> None:
    (unit,) = units(("gateway",), Settings(), Place("/no/such/python", "root"), worker="w")
    path = tmp_path / unit.name
    path.write_text(unit.text)
    done = subprocess.run(
        (analyzer, "verify", "--man=no", str(path)), capture_output=True, check=False
    )
    assert done.returncode != 0


def test_only_what_is_named_is_printed() -> None:
    text = run("print", "--worker", "--watchdog", "--run-as", "svc")
    assert text.count("[Unit]") == 2
    assert "# vllm-batch-worker@.service" in text
    assert "User=svc" in text
    assert "# vllm-batch-watchdog.service" in text
    assert run("print").count("[Unit]") == 4


def unit(role: str, settings: Settings | None = None) -> Unit:
    (found,) = units((role,), settings or Settings(), PLACE, worker="gpu0")
    return found


def test_a_worker_has_time_to_drain_and_to_load() -> None:
    settings = Settings(drain_notice_seconds=120, engine_ready_seconds=900)
    lines = unit("worker", settings).text.splitlines()
    assert "TimeoutStopSec=135" in lines
    assert "TimeoutStartSec=930" in lines
    for line in ("Type=notify", "WatchdogSec=60", "Restart=always", "KillMode=mixed"):
        assert line in lines
    assert unit("worker").start == "vllm-batch-worker@gpu0.service"


def test_odd_paths_and_values_are_quoted(analyzer: str, tmp_path: Path) -> None:
    folder = tmp_path / "a 100% $odd folder"
    folder.mkdir()
    python = folder / "python"
    python.symlink_to(sys.executable)
    (found,) = units(("gateway",), Settings(), Place(str(python), "root"), worker="w")
    path = tmp_path / found.name
    path.write_text(found.text)
    done = subprocess.run(
        (analyzer, "verify", "--man=no", str(path)), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'A="say \\"a\\\\b\\""' in environment_text({"A": 'say "a\\b"'})


@pytest.fixture
def notify_socket(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


@pytest.mark.usefixtures("event_store")  # a gateway has made the streams
@pytest.mark.parametrize(
    "module", [("batch_watchdog",), ("batch_gateway", "orchestrator"), ("batch_gpu_worker",)]
)
async def test_a_service_keeps_saying_that_it_lives(
    module: tuple[str, ...], settings: Settings, notify_socket: socket.socket
) -> None:
    environment = {
        **os.environ,
        **environment_of(settings.model_dump(exclude_defaults=True, exclude_none=True)),
        "NOTIFY_SOCKET": notify_socket.getsockname(),
        "WATCHDOG_USEC": "300000",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *module, env=environment)
    loop = asyncio.get_running_loop()
    said: list[str] = []
    try:
        async with asyncio.timeout(120):
            while said.count("WATCHDOG=1") < 3 or "READY=1" not in said:
                said += (await loop.sock_recv(notify_socket, 4096)).decode().splitlines()
        process.send_signal(signal.SIGSTOP)  # a process that hangs says nothing

        async def silent() -> bool:
            try:
                async with asyncio.timeout(1):
                    await loop.sock_recv(notify_socket, 4096)
            except TimeoutError:
                return True
            return False

        async with asyncio.timeout(120):
            while not await silent():
                continue
    finally:
        process.kill()
        await process.wait()
