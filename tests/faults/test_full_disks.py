"""Disks that are full for a while: said clearly, nothing lost, and it goes on without a person."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from tests.faults.conftest import Bench, StartBench
from tests.faults.workload import results_of
from vllm_batch.settings import MIB

REQUESTS = 3000
FULL_SECONDS = 30.0
MountDisk = Callable[[Path, int], None]


@pytest.fixture
def mount_disk() -> Iterator[MountDisk]:
    """Mount a tmpfs of that many MiB on a directory. Asked for before the stack, gone after it."""
    with ExitStack() as mounted:

        def mount(directory: Path, mebibytes: int) -> None:
            directory.mkdir(parents=True)
            options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(directory)]
            if os.geteuid() != 0 or subprocess.run(["mount", *options], check=False).returncode:
                pytest.skip("mounting a small disk needs root")
            mounted.callback(subprocess.run, ["umount", "-l", str(directory)], check=True)

        yield mount


def fill(directory: Path) -> Path:
    """Write a file until nothing more fits; returns it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break
    return filler


def until(condition: Callable[[], bool], what: str, seconds: float = FULL_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)


def said(bench: Bench, service: str, words: str) -> bool:
    return words in bench.stack.service(service).log_text()


async def test_the_blob_store_is_full_for_a_while(
    mount_disk: MountDisk, tmp_path: Path, start_bench: StartBench
) -> None:
    disk = tmp_path / "disk"
    mount_disk(disk, 16)
    bench = start_bench(workers=2, blob_url=(disk / "blobs").as_uri(), blob_free_bytes_min=0)
    work = bench.submit("blobs", REQUESTS)
    bench.client.wait_progress(work, 300)
    filler = fill(disk)
    until(lambda: said(bench, "worker-1", "no space left to store"), "the worker to say so")
    patient = bench.client.openai.with_options(max_retries=0)
    with pytest.raises(openai.APIStatusError) as refused:
        patient.files.create(file=("in.jsonl", work.content), purpose="batch")
    assert refused.value.status_code == 507
    assert refused.value.code == "storage_full"
    during = bench.client.batch(work)
    assert during.status == "in_progress"
    assert results_of(during) < REQUESTS
    filler.unlink()
    assert bench.client.wait_ended(work).status == "completed"
    assert all(status.restarts == 0 for status in bench.stack.services())
    assert await bench.oracle.findings(kills=0) == []


async def test_the_event_log_is_full_for_a_while(
    mount_disk: MountDisk, tmp_path: Path, start_bench: StartBench
) -> None:
    store = tmp_path / "home" / "nats" / "store"
    mount_disk(store, 64)
    bench = start_bench(workers=2, telemetry_bytes_max=MIB, append_timeout_seconds=2.0)
    work = bench.submit("events", REQUESTS)
    bench.client.wait_progress(work, 300)
    filler = fill(store)
    until(lambda: said(bench, "nats", "no space left on device"), "the server to say so")
    patient = bench.client.openai.with_options(max_retries=0, timeout=20)
    with pytest.raises(openai.APIStatusError) as refused:
        patient.files.create(file=("in.jsonl", work.content), purpose="batch")
    assert refused.value.status_code == 503
    filler.unlink()
    assert bench.client.wait_ended(work).status == "completed"
    again = bench.submit("after", 100)
    assert bench.client.wait_ended(again).status == "completed"
    restarted = [s.name for s in bench.stack.services() if s.restarts]
    assert "nats" in restarted  # it writes nothing more by itself; no other reason to restart
    workers = sum(name.startswith("worker") for name in restarted)
    assert await bench.oracle.findings(kills=workers) == []
