"""Orchestrators as processes: takeover, a clean stop, and little memory for a huge file."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from tests.orchestrator_bench import (
    NO_POSTGRES,
    LogBench,
    TinyWorker,
    orchestrator_process,
    until,
)
from tests.unit.orchestrator.bench import request

from vllm_batch.aggregates.job import Cancel, JobStatus
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.messaging.leadership import BUCKET
from vllm_batch.settings import Settings

EXIT_SECONDS = 60.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "postgres_dsn": NO_POSTGRES,
            "chunk_requests_max": 10,
            "leader_lease_seconds": 1.5,
            "cancel_grace_seconds": 0.3,
            "batch_requests_max": 1_000_000,
        }
    )


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> LogBench:
    return LogBench(event_store, settings)


def content(count: int) -> bytes:
    return b"".join(request(f"r-{n}") for n in range(count))


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def leader(store: JetStreamEventStore) -> bytes | None:
    try:
        bucket = await store.js.key_value(BUCKET)
        value: bytes | None = (await bucket.get("orchestrator")).value
    except Exception:  # noqa: BLE001 - there is no bucket, or nobody leads
        return None
    return value


async def test_a_standby_takes_over_from_a_killed_leader(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    gate = asyncio.Semaphore(3)
    worker = TinyWorker(settings, gate=gate)

    async def somebody_leads() -> bool:
        return await leader(event_store) is not None

    async with worker.working(), orchestrator_process(settings) as first:
        await eventually(somebody_leads)
        async with orchestrator_process(settings) as standby:
            job_id = (await bench.submit("a", content(200))).job_id
            await until(lambda: len(worker.leased) >= 4)
            first.kill()
            await first.wait()
            killed = time.monotonic()
            other = (await bench.submit("b", content(5))).job_id
            await bench.reach(other, JobStatus.RUNNING, seconds=60)
            took = time.monotonic() - killed
            for _ in range(100):
                gate.release()
            await bench.reach(job_id, JobStatus.COMPLETED)
            await bench.reach(other, JobStatus.COMPLETED)
            standby.send_signal(signal.SIGTERM)
            async with asyncio.timeout(EXIT_SECONDS):
                assert await standby.wait() == 0
    # The key lapses after a lease, the server looks about once a second, the standby every third.
    assert took < settings.leader_lease_seconds * 3 + 15


async def test_a_leader_that_is_asked_to_stop_makes_way_at_once(
    event_store: JetStreamEventStore, settings: Settings
) -> None:
    patient = settings.model_copy(update={"leader_lease_seconds": 60.0})

    async def somebody_leads() -> bool:
        return await leader(event_store) is not None

    async def nobody_leads() -> bool:
        return await leader(event_store) is None

    async with orchestrator_process(patient) as process:
        await eventually(somebody_leads)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(EXIT_SECONDS):
            assert await process.wait() == 0
    await eventually(nobody_leads, 60)


async def test_it_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    nowhere = Settings(nats_url="nats://127.0.0.1:1", home=tmp_path, postgres_dsn=NO_POSTGRES)
    async with orchestrator_process(nowhere, stderr=asyncio.subprocess.PIPE) as process:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            for _ in range(10):
                assert b"Connection refused" in await process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(EXIT_SECONDS):
            assert await process.wait() == 0


async def test_deep_nesting_is_an_error_of_its_line_and_no_crash(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    def nested(name: str, depth: int) -> bytes:
        return request(name, padding=1).replace(b'"x"}', b"[" * depth + b"]" * depth + b"}")

    idle = TinyWorker(settings, gate=asyncio.Semaphore(0))
    async with idle.working(), orchestrator_process(settings) as process:
        fine = (await bench.submit("fine", content(1) + nested("deep", 5_000))).job_id
        await bench.reach(fine, JobStatus.RUNNING)
        await bench.job_command(fine, Cancel())
        ended = (await bench.reach(fine, JobStatus.CANCELLED)).ended
        assert ended is not None
        errors = await bench.file_lines(ended.error_file_id)
        assert [line["custom_id"] for line in errors] == ["r-0", "deep"]
        bad = (await bench.submit("bad", content(1) + nested("deep", 100_000))).job_id
        job = await bench.reach(bad, JobStatus.FAILED)
        assert process.returncode is None
    assert job.failed is not None
    assert [(error.code, error.line) for error in job.failed.errors] == [("invalid_json_line", 2)]


async def test_planning_and_finalizing_a_large_file_takes_little_memory(
    bench: LogBench, settings: Settings
) -> None:
    big = settings.model_copy(update={"chunk_requests_max": 256})
    line = request("r-0000000", padding=4_000)
    lines = 200 * 1024 * 1024 // len(line)
    data = b"".join(line.replace(b"r-0000000", b"r-%07d" % n) for n in range(lines))
    async with TinyWorker(big).working(), orchestrator_process(big) as process:
        warm = (await bench.submit("warm", content(10))).job_id
        await bench.reach(warm, JobStatus.COMPLETED)
        before = psutil.Process(process.pid).memory_info().rss
        job_id = (await bench.submit("big", data)).job_id
        del data
        job = await bench.reach(job_id, JobStatus.COMPLETED, seconds=120)
        peak = peak_rss(process.pid)
    assert job.ended is not None
    assert job.ended.completed == lines
    assert peak - before < 80 * 1024 * 1024, f"grew by {(peak - before) >> 20} MiB"


def peak_rss(pid: int) -> int:
    """Return the most memory a process ever had, as the kernel noted it."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_validating_200_mb_takes_constant_memory() -> None:
    """Validation and cutting alone, without what a service needs besides."""
    script = """
        import asyncio, resource, sys
        from batch_gateway.orchestrator.arranging import arrange
        from batch_gateway.orchestrator.cutting import Layout
        from batch_gateway.orchestrator.line_blocks import line_blocks
        from batch_gateway.orchestrator.model_names import RecordedNames
        from batch_gateway.orchestrator.validation import Validator
        from vllm_batch.events.chunk import Cut
        from vllm_batch.settings import Settings

        URL = "/v1/completions"
        LINE = b'{"custom_id":"%040d","method":"POST","url":"/v1/completions",' \
               b'"body":{"model":"m","prompt":"' + b"x" * 4000 + b'"}}\\n'

        async def pieces():
            for start in range(0, 50_000, 250):
                yield b"".join(LINE % n for n in range(start, start + 250))

        async def main():
            validator = Validator(Settings(), endpoint=URL, names=RecordedNames({}), mixed=False)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async for block in line_blocks(pieces(), line_bytes_max=1 << 24):
                validator.feed(block)
            validator.finish()
            order = arrange(validator.index, prefix_gain_min=0.1)
            layout = Layout(validator.index, order)
            pieces_ = layout.pieces(layout.counts(Cut(256, 8 << 20)))
            assert validator.valid and validator.count == 50_000 and len(pieces_) > 1
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

        asyncio.run(main())
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True
    )
    assert int(result.stdout) * 1024 < 60 * 1024 * 1024
