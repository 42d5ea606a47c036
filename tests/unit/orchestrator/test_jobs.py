"""Jobs from step to step over a log in memory; what a crash leaves behind is taken up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.orchestrator.bench import OrchestratorBench, request

from batch_gateway.orchestrator import board_feed
from batch_gateway.orchestrator.board import Board
from batch_gateway.orchestrator.finalizer import Finalizer
from batch_gateway.orchestrator.jobs import Jobs
from batch_gateway.orchestrator.model_names import RecordedNames
from batch_gateway.orchestrator.planner import Planner
from vllm_batch.aggregates.chunk import ChunkStatus, Release
from vllm_batch.aggregates.job import TERMINAL, Cancel, CloseWindow, Finalize, Job, JobStatus
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import SystemClock
from vllm_batch.errors import BlobError, Rejected
from vllm_batch.ids import JobId
from vllm_batch.metrics.orchestrator import OrchestratorMetrics


@asynccontextmanager
async def leading(
    bench: OrchestratorBench, *, blobs: BlobStore | None = None, seed: int = 1
) -> AsyncIterator[Board]:
    """Take the steps of all jobs, as a leader does."""
    clock, blobs = SystemClock(), blobs or bench.blobs
    board = await board_feed.load(bench.store, clock.monotonic)
    planner = Planner(bench.store, blobs, bench.settings, RecordedNames({}))
    finalizer = Finalizer(bench.store, blobs, clock, spool_directory=bench.home)
    jobs = Jobs(
        board, bench.store, planner, finalizer, bench.settings,
        clock=clock, rng=random.Random(seed),
        metrics=OrchestratorMetrics(CollectorRegistry()),
    )  # fmt: skip
    tasks = [
        asyncio.create_task(board_feed.follow(bench.store, board)),
        asyncio.create_task(jobs.run()),
    ]
    try:
        yield board
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def reach(bench: OrchestratorBench, job_id: JobId, *statuses: JobStatus) -> Job:
    async with asyncio.timeout(10):
        while (job := await bench.job(job_id)).status not in statuses:
            await asyncio.sleep(0.002)
    return job


@pytest.fixture
def bench(bench: OrchestratorBench) -> OrchestratorBench:
    bench.settings = bench.settings.model_copy(
        update={"cancel_grace_seconds": 0.3, "chunk_requests_max": 2}
    )
    return bench


def content(count: int) -> bytes:
    return b"".join(request(f"r{n}") for n in range(count))


async def test_a_job_goes_all_the_way(bench: OrchestratorBench) -> None:
    async with leading(bench):
        submitted = await bench.submit("a", content(5))
        job_id = submitted.job_id
        await reach(bench, job_id, JobStatus.RUNNING)
        for number, chunk in enumerate(await bench.chunks(job_id)):
            await bench.lease(job_id, number)
            results = dict.fromkeys(range(chunk.planned.count), False)
            await bench.hand_in(job_id, number, results, end=True)
        job = await reach(bench, job_id, JobStatus.COMPLETED)
    assert job.ended is not None
    assert len(await bench.file_lines(job.ended.output_file_id)) == 5


async def test_a_cancel_takes_effect_at_once_where_nothing_is_leased(
    bench: OrchestratorBench,
) -> None:
    async with leading(bench):
        job_id = (await bench.submit("a", content(5))).job_id
        await reach(bench, job_id, JobStatus.RUNNING)
        await bench.job_command(job_id, Cancel())
        job = await reach(bench, job_id, JobStatus.CANCELLED)
    assert job.ended is not None
    assert (job.ended.total, job.ended.completed, job.ended.failed) == (5, 0, 0)
    assert len(await bench.file_lines(job.ended.error_file_id)) == 5
    elapsed = job.times[JobStatus.CANCELLED] - job.times[JobStatus.CANCELLING]
    assert elapsed.total_seconds() < bench.settings.cancel_grace_seconds


async def test_what_a_worker_hands_in_within_the_grace_is_kept(bench: OrchestratorBench) -> None:
    async with leading(bench):
        job_id = (await bench.submit("a", content(4))).job_id
        await reach(bench, job_id, JobStatus.RUNNING)
        await bench.lease(job_id, 0)
        await bench.job_command(job_id, Cancel())
        await bench.hand_in(job_id, 0, {1: False})
        await bench.chunk_command(job_id, 0, Release(1, "cancelled"))
        job = await reach(bench, job_id, JobStatus.CANCELLED)
    assert job.ended is not None
    assert (job.ended.total, job.ended.completed) == (4, 1)


async def test_a_worker_that_hands_in_nothing_is_fenced_after_the_grace(
    bench: OrchestratorBench,
) -> None:
    async with leading(bench):
        job_id = (await bench.submit("a", content(2))).job_id
        await reach(bench, job_id, JobStatus.RUNNING)
        await bench.lease(job_id, 0)
        await bench.job_command(job_id, CloseWindow())
        job = await reach(bench, job_id, JobStatus.EXPIRED)
        with pytest.raises(Rejected):
            await bench.hand_in(job_id, 0, {0: False, 1: False}, end=True)
    assert job.ended is not None
    assert job.ended.completed == 0
    assert (await bench.chunks(job_id))[0].status is ChunkStatus.CLOSED


async def test_a_job_cancelled_while_it_is_planned_ends_without_files(
    bench: OrchestratorBench,
) -> None:
    class Slow(BlobStore):
        async def stream(
            self, key: str, *, start: int = 0, length: int | None = None
        ) -> AsyncIterator[bytes]:
            await asyncio.sleep(3600)
            yield b""

    slow = Slow(bench.blobs._store, bench.blobs._root)
    async with leading(bench, blobs=slow):
        job_id = (await bench.submit("a", content(5))).job_id
        await asyncio.sleep(0)
        await bench.job_command(job_id, Cancel())
        job = await reach(bench, job_id, JobStatus.CANCELLED)
    assert job.ended is not None
    assert (job.ended.total, job.ended.output_file_id, job.ended.error_file_id) == (0, None, None)


async def test_one_slow_file_holds_up_nobody(bench: OrchestratorBench) -> None:
    class SlowForOne(BlobStore):
        async def stream(
            self, key: str, *, start: int = 0, length: int | None = None
        ) -> AsyncIterator[bytes]:
            if key == "files/file-slow":
                await asyncio.sleep(3600)
            async for piece in super().stream(key, start=start, length=length):
                yield piece

    blobs = SlowForOne(bench.blobs._store, bench.blobs._root)
    async with leading(bench, blobs=blobs):
        slow = (await bench.submit("slow", content(5))).job_id
        others = [(await bench.submit(f"b{n}", content(5))).job_id for n in range(10)]
        for job_id in others:
            await reach(bench, job_id, JobStatus.RUNNING)
        assert (await bench.job(slow)).status is JobStatus.VALIDATING


async def test_an_invalid_file_fails_and_the_next_job_runs(bench: OrchestratorBench) -> None:
    async with leading(bench):
        bad = (await bench.submit("bad", b"{\n")).job_id
        good = (await bench.submit("good", content(1))).job_id
        await reach(bench, bad, JobStatus.FAILED)
        await reach(bench, good, JobStatus.RUNNING)


async def test_trouble_with_the_blobs_passes(bench: OrchestratorBench) -> None:
    class Troubled(BlobStore):
        attempts = 0

        async def stream(
            self, key: str, *, start: int = 0, length: int | None = None
        ) -> AsyncIterator[bytes]:
            self.attempts += 1
            if self.attempts == 1:
                raise BlobError(f"blob {key}: connection refused")
            async for piece in super().stream(key, start=start, length=length):
                yield piece

    blobs = Troubled(bench.blobs._store, bench.blobs._root)
    async with leading(bench, blobs=blobs):
        job_id = (await bench.submit("a", content(5))).job_id
        await reach(bench, job_id, JobStatus.RUNNING)
    assert blobs.attempts == 2


@pytest.mark.parametrize("state", ["validating", "cancelling", "finalizing"])
async def test_what_a_dead_leader_left_is_taken_up(bench: OrchestratorBench, state: str) -> None:
    if state == "validating":
        job_id = (await bench.submit("a", content(5))).job_id
    else:
        job_id = await bench.planned("a", [request(f"r{n}") for n in range(5)], per_chunk=2)
        await bench.lease(job_id, 0)
        await bench.hand_in(job_id, 0, {0: False, 1: True}, end=True)
        await bench.job_command(job_id, Cancel())
    if state == "finalizing":
        await bench.job_command(job_id, Finalize())
    async with leading(bench):
        job = await reach(bench, job_id, JobStatus.RUNNING, *TERMINAL)
    if state != "validating":
        assert job.ended is not None
        assert (job.ended.total, job.ended.completed, job.ended.failed) == (5, 1, 1)


async def test_two_leaders_at_once_lead_to_one_outcome(bench: OrchestratorBench) -> None:
    async with leading(bench, seed=1), leading(bench, seed=2), leading(bench, seed=3):
        jobs = [(await bench.submit(f"j{n}", content(6))).job_id for n in range(5)]
        for job_id in jobs:
            await reach(bench, job_id, JobStatus.RUNNING)
        await bench.job_command(jobs[0], Cancel())
        for job_id in jobs[1:]:
            for number in range(3):
                await bench.lease(job_id, number)
                await bench.hand_in(job_id, number, {0: False, 1: False}, end=True)
        ended = [await reach(bench, job_id, *TERMINAL) for job_id in jobs]
    assert [job.status for job in ended] == [JobStatus.CANCELLED, *[JobStatus.COMPLETED] * 4]
    seen: dict[str, int] = {}
    async for batch in bench.store.read("job.>"):
        for recorded in batch:
            kind = recorded.event.TYPE
            seen[kind] = seen.get(kind, 0) + 1
    assert seen["job.started"] == seen["job.finalizing"] == 5
    assert (seen["job.completed"], seen["job.cancelled"]) == (4, 1)
