"""Watchdog processes over a real log, with a restarter whose calls are on record."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from tests.conftest import NatsServer
from tests.facts import append
from tests.unit.watchdog.bench import heartbeat
from tests.worker_bench import until

from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    Event,
    WorkerCrashLooping,
    WorkerLost,
    WorkerReady,
    WorkerRestartRequested,
    WorkerStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.local.programs import environment_of
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings
from vllm_batch.worker_control import Reply

WORKER = WorkerId("worker_0123456789abcdef01234567")

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{calls}"
exit {status}
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


@pytest.fixture
def watchdog_settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "heartbeat_seconds": 0.1,
            "lease_seconds": 1.0,
            "leader_lease_seconds": 1.0,
            "watchdog_restarter": "systemd",
            "watchdog_restart_grace_seconds": 0.3,
            "watchdog_backoff_seconds": 300.0,
            "crash_loop_restarts": 3,
            "engine_frozen_seconds": 5.0,
        }
    )


def fake_systemctl(directory: Path, calls: Path, *, status: int = 0) -> Path:
    """Put a ``systemctl`` there that notes what it is asked."""
    directory.mkdir(exist_ok=True)
    program = directory / "systemctl"
    program.write_text(SYSTEMCTL.format(calls=calls, status=status))
    program.chmod(0o755)
    return directory


@asynccontextmanager
async def watchdog_process(
    settings: Settings, *, path: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a watchdog; whatever is left of it at the end is killed."""
    environment = {
        **os.environ,
        **environment_of(settings.model_dump(exclude_defaults=True, exclude_none=True)),
    }
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batch_watchdog", env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def announce(store: JetStreamEventStore, worker_id: WorkerId = WORKER) -> None:
    started = WorkerStarted(
        worker_id=worker_id, name="gpu0", host=socket.gethostname(), pid=1, engine="simulated",
        version="1",
    )  # fmt: skip
    await append(store, started, WorkerReady(worker_id=worker_id, models=["m"], in_flight_max=8))


async def lose(store: JetStreamEventStore, worker_id: WorkerId = WORKER) -> None:
    await append(store, WorkerLost(worker_id=worker_id, reason="silent"))


def restarts(calls: Path) -> list[str]:
    lines = calls.read_text().splitlines() if calls.exists() else []
    return [line for line in lines if line.startswith("restart")]


async def recorded(store: JetStreamEventStore, cls: type[Event]) -> list[Any]:
    return [r.event async for batch in store.read(subjects.every(cls)) for r in batch]


async def test_a_lost_worker_has_its_unit_restarted(
    event_store: JetStreamEventStore, watchdog_settings: Settings, tmp_path: Path, calls: Path
) -> None:
    path = fake_systemctl(tmp_path / "bin", calls)
    async with watchdog_process(watchdog_settings, path=path) as process:
        await announce(event_store)
        await lose(event_store)
        await until(lambda: len(restarts(calls)) == 1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    assert calls.read_text().splitlines() == [
        "reset-failed -- vllm-batch-worker@gpu0.service",
        "restart --no-block -- vllm-batch-worker@gpu0.service",
    ]
    (event,) = await recorded(event_store, WorkerRestartRequested)
    assert (event.worker_id, event.requested_by) == (WORKER, "watchdog")


async def test_two_watchdogs_restart_once_and_one_that_was_down_catches_up(
    event_store: JetStreamEventStore, watchdog_settings: Settings, tmp_path: Path, calls: Path
) -> None:
    path = fake_systemctl(tmp_path / "bin", calls)
    await announce(event_store)
    await lose(event_store)
    async with (
        watchdog_process(watchdog_settings, path=path),
        watchdog_process(watchdog_settings, path=path),
    ):
        await until(lambda: len(restarts(calls)) >= 1)
        second = WorkerId("worker_second")
        await append(
            event_store,
            WorkerStarted(
                worker_id=second, name="gpu1", host=socket.gethostname(), pid=1,
                engine="simulated", version="1",
            ),
        )  # fmt: skip
        await lose(event_store, second)
        await until(lambda: any("gpu1" in call for call in restarts(calls)))
    assert sorted(restarts(calls)) == [
        "restart --no-block -- vllm-batch-worker@gpu0.service",
        "restart --no-block -- vllm-batch-worker@gpu1.service",
    ]


async def test_restarts_that_fail_end_in_a_crash_loop(
    event_store: JetStreamEventStore, watchdog_settings: Settings, tmp_path: Path, calls: Path
) -> None:
    path = fake_systemctl(tmp_path / "bin", calls, status=5)
    await announce(event_store)
    await lose(event_store)
    hasty = watchdog_settings.model_copy(update={"watchdog_backoff_seconds": 0.2})
    async with watchdog_process(hasty, path=path):

        async def announced() -> bool:
            return bool(await recorded(event_store, WorkerCrashLooping))

        await until(announced)
    (event,) = await recorded(event_store, WorkerCrashLooping)
    assert event.restarts == 3
    assert len(restarts(calls)) == 3


async def test_a_worker_of_another_host_is_not_ours(
    event_store: JetStreamEventStore, watchdog_settings: Settings, tmp_path: Path, calls: Path
) -> None:
    path = fake_systemctl(tmp_path / "bin", calls)
    elsewhere, here = WorkerId("worker_elsewhere"), WorkerId("worker_here")
    for worker, name, host in ((elsewhere, "far", "elsewhere"), (here, "near", None)):
        started = WorkerStarted(
            worker_id=worker, name=name, host=host or socket.gethostname(), pid=1, engine="e",
            version="1",
        )  # fmt: skip
        await append(event_store, started)
        await lose(event_store, worker)
    async with watchdog_process(watchdog_settings, path=path):
        await until(lambda: bool(restarts(calls)))
    assert restarts(calls) == ["restart --no-block -- vllm-batch-worker@near.service"]


async def test_it_goes_on_when_nats_comes_back(
    event_store: JetStreamEventStore,
    watchdog_settings: Settings,
    tmp_path: Path,
    calls: Path,
    nats_server: NatsServer,
) -> None:
    path = fake_systemctl(tmp_path / "bin", calls)
    async with watchdog_process(watchdog_settings, path=path) as process:
        await announce(event_store)
        nats_server.kill()
        nats_server.start()
        await until(lambda: event_store.connection.client.is_connected)
        await lose(event_store)
        await until(lambda: len(restarts(calls)) == 1)
        assert process.returncode is None


async def test_a_frozen_engine_that_its_agent_leaves_alone_is_ordered_killed(
    event_store: JetStreamEventStore, watchdog_settings: Settings
) -> None:
    client = event_store.connection.client
    orders: list[dict[str, Any]] = []

    async def take(message: Msg) -> None:
        orders.append(msgspec.json.decode(message.data))
        await message.respond(msgspec.json.encode(Reply(ok=True, message="killed")))

    await client.subscribe(subjects.control(WORKER), cb=take)
    async with watchdog_process(watchdog_settings):

        async def beat_until_ordered() -> bool:
            beat = heartbeat(WORKER, engine_progress_age_seconds=11.0)
            await client.publish(subjects.heartbeat(WORKER), msgspec.json.encode(beat))
            return bool(orders)

        await until(beat_until_ordered)
    assert orders == [{"command": "kill", "requested_by": "watchdog"}]
