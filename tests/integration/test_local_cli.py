"""The command line against a real stack with the simulated engine: up, status, env, down, demo."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from vllm_batch.local import leftovers, state
from vllm_batch.local.home import Home

COMMAND = (sys.executable, "-m", "vllm_batch.cli")
SECONDS = 240.0
pytestmark = pytest.mark.timeout(900)


def run(
    *arguments: str | Path, expect: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        (*COMMAND, *map(str, arguments)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def up(home: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return run(
        "up", "--engine", "simulated", "--home", home, "--port", "0", "--detach", *arguments,
        expect=expect,
    )  # fmt: skip


def status(home: Path, expect: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run("status", "--json", "--home", home, expect=expect).stdout
    )
    return found


def client_of(home: Path) -> OpenAI:
    """Return the official client, set up as `eval "$(vllm-batch env)"` does it."""
    lines = run("env", "--home", home).stdout.splitlines()
    variables = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    return OpenAI(base_url=variables["OPENAI_BASE_URL"], api_key=variables["OPENAI_API_KEY"])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose stack is gone after the test, whatever the test did."""
    place = tmp_path / "a home"
    yield place
    run("down", "--now", "--home", place)
    assert leftovers.marked(Home.at(place).mark) == []


def test_a_detached_stack_serves_until_it_is_stopped(home: Path) -> None:
    up(home, "--workers", "2")
    found = status(home)
    assert found["state"] == "ready"
    names = {"nats", "postgres", "api", "orchestrator", "watchdog", "worker-1", "worker-2"}
    names |= {"labelstudio-bridge", "admin-ui"}
    assert {service["name"] for service in found["services"]} == names
    assert {service["state"] for service in found["services"]} == {"ready"}
    pids = [service["pid"] for service in found["services"]]
    assert all(psutil.pid_exists(pid) for pid in pids)
    with client_of(home) as client:
        assert [model.id for model in client.models.list()] == [found["model"]]
    assert (home / "api-key").stat().st_mode & 0o077 == 0
    text = run("status", "--home", home).stdout
    assert found["api_url"] in text
    assert "worker-2" in text

    assert json.loads(run("down", "--json", "--home", home).stdout)["stopped"] is True
    assert status(home, expect=3)["state"] == "stopped"
    assert not any(leftovers.is_same(pid, leftovers.started_at(pid)) and alive(pid) for pid in pids)
    assert json.loads(run("down", "--json", "--home", home).stdout)["stopped"] is False


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_second_start_is_refused_and_says_by_whom(home: Path) -> None:
    up(home)
    holder = state.read(home / "state.json").pid
    refused = up(home, expect=1)
    assert f"in use by process {holder}" in refused.stderr
    assert "vllm-batch down --home" in refused.stderr
    assert status(home)["supervisor"]["pid"] == holder


def test_a_killed_supervisor_takes_all_along_and_the_next_start_goes_on(home: Path) -> None:
    up(home)
    before = status(home)
    with client_of(home) as client:
        uploaded = client.files.create(file=("a.jsonl", b'{"a": 1}\n'), purpose="user_data")
    os.kill(before["supervisor"]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(alive(service["pid"]) for service in before["services"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert status(home, expect=3)["state"] == "stopped"
    up(home)
    assert status(home)["api_url"] == before["api_url"]
    with client_of(home) as client:
        assert client.files.retrieve(uploaded.id).bytes == 9


def test_a_foreground_stack_stops_on_a_signal(home: Path) -> None:
    process = subprocess.Popen(
        (*COMMAND, "up", "--engine", "simulated", "--home", str(home), "--port", "0"),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "stop with Ctrl-C" in line:
                break
        assert status(home)["state"] == "ready"
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 0
    assert status(home, expect=3)["state"] == "stopped"


def test_a_start_that_is_interrupted_leaves_nothing(home: Path) -> None:
    process = subprocess.Popen(
        (*COMMAND, "up", "--engine", "simulated", "--home", str(home), "--port", "0"),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "nats: starting" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.returncode == 130
    assert leftovers.marked(Home.at(home).mark) == []


def test_a_taken_port_is_refused_with_what_to_do(home: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        done = run("up", "--engine", "simulated", "--home", home, "--port", str(port), expect=1)
    assert done.stderr.splitlines()[-1] == (
        f"error: port {port} is taken by another program; choose another with --port"
    )


def test_a_start_that_fails_shows_why(home: Path) -> None:
    home.mkdir()
    (home / "settings.toml").write_text("lease_seconds = -1\n")
    done = up(home, expect=1)
    assert done.stderr.splitlines()[-1] == (
        "error: a setting is wrong: lease_seconds: Input should be greater than or equal to 0.5"
        f" ({home / 'settings.toml'})"
    )


def test_logs_of_a_service_can_be_read(home: Path) -> None:
    up(home)
    assert "nats" in run("logs", "--home", home).stdout.split()
    assert "Server is ready" in run("logs", "nats", "--home", home).stdout
    lines = run("logs", "nats", "--home", home, "--tail", "3", "--json").stdout.splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"line"}] * 3
    done = run("logs", "nots", "--home", home, expect=4)
    assert "there are: admin-ui, api, labelstudio-bridge, nats, orchestrator" in done.stderr


def test_the_demo_answers_through_the_official_client(home: Path) -> None:
    arguments = ("demo", "--engine", "simulated", "--home", home, "--port", "0")
    data = json.loads(run(*arguments, "--json").stdout)
    assert data["batch"]["status"] == "completed"
    assert data["batch"]["request_counts"] == {"completed": 10, "failed": 0, "total": 10}
    assert all(answer["answer"] not in ("", "(no answer)") for answer in data["answers"])
    supervisor = status(home)["supervisor"]["pid"]
    text = run(*arguments).stdout
    assert "What is the capital of France?" in text
    assert f"vllm-batch down --home '{home}'" in text
    assert status(home)["supervisor"]["pid"] == supervisor, "the running stack was used again"


def test_two_stacks_side_by_side(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    up(home)
    up(other)
    try:
        with client_of(home) as one, client_of(other) as two:
            uploaded = one.files.create(file=("a.jsonl", b'{"a": 1}\n'), purpose="user_data")
            assert [file.id for file in one.files.list()] == [uploaded.id]
            assert list(two.files.list()) == []
    finally:
        run("down", "--now", "--home", other)


def test_commands_without_a_stack_say_how_to_get_one(tmp_path: Path) -> None:
    for command in ("status", "env"):
        done = run(command, "--home", tmp_path, expect=3)
        assert done.stderr.count("\n") == 1
        assert "vllm-batch up --detach" in done.stderr
    run("up", "--engine", "nonsense", expect=2)
    run("nonsense", expect=2)


def test_a_broken_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("this is not toml")
    done = run("config", "--home", tmp_path, expect=1)
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path / 'settings.toml'} is not valid TOML" in done.stderr


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    for command in ("up", "down", "status", "env", "config", "logs", "demo", "test", "version"):
        assert f" {command} " in text
    assert "Exit codes" in text
