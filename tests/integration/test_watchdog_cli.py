"""``vllm-batch worker`` against a running stack: look, order, read logs, clear."""

from __future__ import annotations

import asyncio
import getpass
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from tests.facts import append, planned, submitted

from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    Event,
    JobStarted,
    WorkerCleared,
    WorkerCrashLooping,
    WorkerEngineKilled,
    WorkerGpuCleared,
    WorkerLost,
    WorkerRestartRequested,
    WorkerStarted,
)
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.local.stack import LocalStack
from vllm_batch.log_stream import LogLine
from vllm_batch.messaging import subjects

COMMAND = (sys.executable, "-m", "vllm_batch.cli", "worker")
GONE = WorkerId("worker_00000000000000000000dead")
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack without an orchestrator: nobody minds the strange events of these tests."""
    home = tmp_path_factory.mktemp("worker-cli") / "home"
    only = {"nats", "worker"}
    with LocalStack(home, only=only, settings_overrides={"heartbeat_seconds": 0.2}) as stack:
        yield stack


def run(stack: LocalStack, *arguments: str, expect: int = 0, answer: str = "") -> str:
    done = subprocess.run(
        (*COMMAND, *arguments, "--home", str(stack.home.root)),
        capture_output=True, text=True, check=False, timeout=60, input=answer,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def with_store(
    stack: LocalStack, deed: Callable[[JetStreamEventStore], Awaitable[Result]]
) -> Result:
    async def main() -> Result:
        async with jetstream.connect(stack.settings, source="test") as store:
            return await deed(store)

    return asyncio.run(main())


def recorded(stack: LocalStack, cls: type[Event]) -> list[Any]:
    async def read(store: JetStreamEventStore) -> list[Any]:
        return [r.event async for batch in store.read(subjects.every(cls)) for r in batch]

    return with_store(stack, read)


def status(stack: LocalStack, *arguments: str) -> dict[str, dict[str, Any]]:
    data = json.loads(run(stack, "status", "--json", *arguments))
    return {worker["name"]: worker for worker in data["workers"]}


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def test_status_shows_the_worker_and_the_queue(stack: LocalStack) -> None:
    async def queue(store: JetStreamEventStore) -> None:
        started = JobStarted(job_id=JobId("batch_q"), total=20, chunks=2, model="m")
        await append(
            store, submitted("batch_q"), planned("batch_q", 0), planned("batch_q", 1), started
        )

    with_store(stack, queue)
    worker = status(stack)["worker-1"]
    assert worker["state"] == "ready"
    assert worker["pid"] == stack.service("worker-1").pid
    assert worker["models"] == [stack.model_name]
    assert 0 <= worker["heartbeat_age_seconds"] < 10
    assert (worker["in_flight"], worker["crash_looping"]) == (0, False)
    queues = json.loads(run(stack, "status", "--json"))["queues"]
    assert queues == [
        {
            "model": "m", "batches": 1, "requests": 20, "chunks_ready": 2,
            "chunks_leased": 0,
        }
    ]  # fmt: skip
    text = run(stack, "status")
    assert "worker-1" in text
    assert "m\t1\t20\t2\t0" in text


def test_an_unknown_worker_is_not_found(stack: LocalStack) -> None:
    assert "worker status" in run(stack, "restart", "nobody", expect=4)
    assert "nobody" in run(stack, "logs", "--worker", "nobody", expect=4)


def test_a_crash_loop_is_shown_until_it_is_cleared(stack: LocalStack) -> None:
    async def die(store: JetStreamEventStore) -> None:
        await append(
            store,
            WorkerStarted(
                worker_id=GONE, name="unlucky", host="h", pid=1, engine="simulated", version="1"
            ),
            WorkerLost(worker_id=GONE, reason="silent"),
            WorkerCrashLooping(worker_id=GONE, restarts=5, window_seconds=600.0),
        )

    assert "no crash loop" in run(stack, "clear", "worker-1")
    with_store(stack, die)
    assert status(stack)["unlucky"]["state"] == "crash-looping"
    assert "cleared unlucky" in run(stack, "clear", "unlucky")
    assert status(stack)["unlucky"]["state"] == "lost"
    (event,) = recorded(stack, WorkerCleared)
    assert (event.worker_id, event.requested_by) == (GONE, getpass.getuser())
    assert "does not run" in run(stack, "kill", "unlucky", "--yes", expect=1)


def log_lines(stack: LocalStack, worker: str, count: int) -> None:
    """Publish log lines as a worker does; every tenth is an error."""

    async def publish(store: JetStreamEventStore) -> None:
        for number in range(count):
            line = LogLine(
                time=datetime(2026, 1, 2, tzinfo=UTC),
                level="error" if number % 10 == 9 else "info",
                source="engine" if number % 2 else "agent",
                message=f"{worker} line {number}",
                fields={"number": number},
            )
            payload = msgspec.json.encode(line)
            await store.js.publish(subjects.log(WorkerId(worker)), payload, timeout=60.0)

    with_store(stack, publish)


def test_logs_show_the_newest_lines(stack: LocalStack) -> None:
    log_lines(stack, GONE, 30)
    own = status(stack)["worker-1"]["worker_id"]
    log_lines(stack, own, 700)
    lines = run(stack, "logs", "--worker", "worker-1", "--tail", "600", "--json").splitlines()
    ours = [json.loads(line) for line in lines if f"{own} line" in line]
    assert [line["fields"]["number"] for line in ours][-500:] == list(range(200, 700))
    assert {line["worker"] for line in ours} == {"worker-1"}
    errors = run(stack, "logs", "--worker", own, "--tail", "20", "--level", "error", "--json")
    assert [json.loads(line)["fields"]["number"] for line in errors.splitlines()] == [689, 699]
    text = run(stack, "logs", "-n", "3")
    assert "engine: " in text
    assert "line 699" in text
    assert run(stack, "logs", "-n", "0") == ""
    assert "one of debug" in run(stack, "logs", "--level", "loud", expect=2)


def test_logs_follow(stack: LocalStack, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("wb") as out:
        follower = subprocess.Popen(
            (*COMMAND, "logs", "--follow", "--tail", "0", "--home", str(stack.home.root)),
            stdout=out,
        )

    def has_come() -> bool:
        log_lines(stack, "worker_new", 1)
        return "worker_new line 0" in said.read_text()

    try:
        until(has_come)
        assert follower.poll() is None
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 130
    finally:
        follower.kill()
        follower.wait(20)


def test_the_logs_of_a_worker_are_those_of_all_its_processes(
    stack: LocalStack, tmp_path: Path
) -> None:
    def start(worker_id: str) -> None:
        event = WorkerStarted(
            worker_id=WorkerId(worker_id), name="phoenix", host="h", pid=1, engine="simulated",
            version="1",
        )  # fmt: skip
        with_store(stack, lambda store: append(store, event))

    said = tmp_path / "said"
    options = ("--worker", "phoenix", "--tail", "3")
    start("worker_first")
    log_lines(stack, "worker_first", 2)
    with said.open("wb") as out:
        follower = subprocess.Popen(
            (*COMMAND, "logs", "--follow", *options, "--home", str(stack.home.root)), stdout=out
        )
    try:
        until(lambda: "worker_first line 1" in said.read_text())
        log_lines(stack, "worker_second", 2)  # a process logs before the log has its start
        log_lines(stack, "worker_of_another_name", 1)
        start("worker_second")
        until(lambda: "worker_second line 1" in said.read_text())
        assert "worker_of_another_name" not in said.read_text()
        assert said.read_text().count("phoenix ") == 4
    finally:
        follower.kill()
        follower.wait(20)
    lines = run(stack, "logs", *options, "--json").splitlines()
    expected = ["worker_first line 1", "worker_second line 0", "worker_second line 1"]
    assert [json.loads(line)["message"] for line in lines] == expected


def test_kill_asks_first_and_the_engine_comes_back(stack: LocalStack) -> None:
    assert "Kill the engine" in run(stack, "kill", "worker-1", expect=1, answer="n\n")
    assert recorded(stack, WorkerEngineKilled) == []
    run(stack, "kill", "worker-1", "--yes")
    (event,) = recorded(stack, WorkerEngineKilled)
    assert event.requested_by == getpass.getuser()
    until(lambda: status(stack)["worker-1"]["state"] == "ready")


def test_clear_gpu_asks_first_and_shows_the_memory(stack: LocalStack) -> None:
    assert "leftovers" in run(stack, "clear-gpu", "worker-1", expect=1, answer="\n")
    assert recorded(stack, WorkerGpuCleared) == []
    reply = json.loads(run(stack, "clear-gpu", "worker-1", "--yes", "--json"))
    assert reply["ok"] is True
    (event,) = recorded(stack, WorkerGpuCleared)
    assert event.requested_by == getpass.getuser()
    until(lambda: status(stack)["worker-1"]["state"] == "ready")


def test_keys_have_scopes(stack: LocalStack) -> None:
    def keys(*arguments: str, expect: int = 0) -> str:
        command = (*COMMAND[:-1], "keys", *arguments, "--home", str(stack.home.root))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == expect, done.stderr
        return done.stdout

    made = json.loads(keys("create", "--name", "boss", "--scope", "admin", "--json"))
    assert made["scopes"] == ["admin"]
    listed = {key["id"]: key["scopes"] for key in json.loads(keys("list", "--json"))}
    assert listed[made["id"]] == ["admin"]
    assert ["batch", "inference", "read"] in listed.values()  # the default key's
    keys("create", "--scope", "everything", expect=2)


def test_restart_starts_the_worker_anew(stack: LocalStack) -> None:
    old = status(stack)["worker-1"]["worker_id"]
    run(stack, "restart", "worker-1")
    until(lambda: status(stack)["worker-1"]["worker_id"] != old)
    until(lambda: status(stack)["worker-1"]["state"] == "ready")
    (event,) = recorded(stack, WorkerRestartRequested)
    assert (event.requested_by, event.now) == (getpass.getuser(), False)
    assert status(stack)["worker-1"]["deaths"] == 0  # nobody takes it for a crash
