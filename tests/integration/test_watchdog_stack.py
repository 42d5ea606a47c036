"""The embedded stack under its watchdog: workers that hang, and requests that never end."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults.workload import Client, make

from vllm_batch.event_store import jetstream
from vllm_batch.events import Event, JobStuck, WorkerCrashLooping, WorkerRestartRequested
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

FAST: dict[str, Any] = {
    "heartbeat_seconds": 0.2,
    "lease_seconds": 1.5,
    "leader_lease_seconds": 1.0,
    "watchdog_restart_grace_seconds": 0.5,
    "flush_seconds": 0.2,
}


def recorded(settings: Settings, cls: type[Event]) -> list[Any]:
    async def read() -> list[Any]:
        async with jetstream.connect(settings, source="test") as store:
            return [r.event async for batch in store.read(subjects.every(cls)) for r in batch]

    return asyncio.run(read())


def test_a_worker_that_hangs_is_killed_and_starts_anew(tmp_path: Path) -> None:
    slow = {"simulated_latency_seconds": 0.05, "engine_max_num_seqs": 8}
    settings = {**FAST, "lease_seconds": 5.0, **slow}
    with LocalStack(tmp_path / "home", settings_overrides=settings) as stack:
        client = Client(stack)
        work = client.submit(make("hang", 400, model=stack.model_name))
        client.wait_progress(work, 20)
        worker = stack.service("worker-1")
        old = worker.kill(signal.SIGSTOP)
        worker.wait_restarted(old, 120)
        batch = client.wait_ended(work, 240)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.total == 400
        (asked,) = recorded(stack.settings, WorkerRestartRequested)
        assert asked.requested_by == "watchdog"
        assert f"killed process {old}" in stack.service("watchdog").log_text()
        client.close()


def test_a_worker_that_keeps_dying_is_announced(tmp_path: Path) -> None:
    settings = {**FAST, "crash_loop_restarts": 3}
    only = {"nats", "watchdog", "worker"}
    with LocalStack(tmp_path / "home", only=only, settings_overrides=settings) as stack:
        worker = stack.service("worker-1")
        for _ in range(3):
            worker.wait_restarted(worker.kill(), 120)
        deadline = time.monotonic() + 120
        while not recorded(stack.settings, WorkerCrashLooping):
            assert time.monotonic() < deadline, "nobody announced it"
        (event,) = recorded(stack.settings, WorkerCrashLooping)
        assert event.restarts == 3


def test_requests_that_never_end_fail_and_the_batch_completes(tmp_path: Path) -> None:
    stuck = {"stuck_job_seconds": 5.0, "stuck_rounds_max": 2, "chunk_requests_max": 10}
    settings = {**FAST, "lease_seconds": 10.0, **stuck}
    with LocalStack(tmp_path / "home", settings_overrides=settings) as stack:
        client = Client(stack)
        work = make("stuck", 40, model=stack.model_name, marks={13: "[[sim:hang]]"})
        client.submit(work)
        batch = client.wait_ended(work, 240)
        assert batch.status == "completed"
        counts = batch.request_counts
        assert counts is not None
        assert (counts.completed, counts.failed, counts.total) == (39, 1, 40)
        (line,) = client.content(batch.error_file_id)
        assert line["custom_id"] == work.lines[13].custom_id
        assert line["error"]["code"] == "batch_stuck"
        # In between it may have waited for its next lease for longer than these short limits.
        notes = [n for n in recorded(stack.settings, JobStuck) if n.reason != "not_leased"]
        assert [(note.reason, note.chunks) for note in notes] == [("no_progress", [1])] * 2
        client.close()
