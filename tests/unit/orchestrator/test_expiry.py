"""The completion window, by a clock that is moved by hand."""

from __future__ import annotations

import asyncio

from tests.unit.orchestrator.bench import START, OrchestratorBench, request

from batch_gateway.orchestrator.expiry import Expiry
from vllm_batch.aggregates.job import Cancel, JobStatus
from vllm_batch.ids import JobId


async def look(bench: OrchestratorBench) -> None:
    """Let the duty run over a fresh board until it waits."""
    expiry = Expiry(await bench.board(), bench.store, bench.clock)
    task = asyncio.create_task(expiry.run())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def at(seconds: float) -> int:
    return int(START.timestamp() + seconds)


async def status(bench: OrchestratorBench, job_id: JobId) -> JobStatus:
    return (await bench.job(job_id)).status


async def test_windows_close_when_their_time_is_up_and_not_before(
    bench: OrchestratorBench,
) -> None:
    soon = await bench.planned("a", [request("1")], per_chunk=1, expires_at=at(60))
    later = await bench.planned("b", [request("1")], per_chunk=1, expires_at=at(120))
    bench.clock.advance(59)
    await look(bench)
    assert await status(bench, soon) is JobStatus.RUNNING
    bench.clock.advance(1)
    await look(bench)
    assert await status(bench, soon) is JobStatus.EXPIRING
    assert await status(bench, later) is JobStatus.RUNNING


async def test_a_job_that_is_still_validated_expires_too(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", request("1"), expires_at=at(60))
    bench.clock.advance(61)
    await look(bench)
    assert await status(bench, submitted.job_id) is JobStatus.EXPIRING


async def test_a_cancelled_job_does_not_expire(bench: OrchestratorBench) -> None:
    job_id = await bench.planned("a", [request("1")], per_chunk=1, expires_at=at(60))
    await bench.job_command(job_id, Cancel())
    bench.clock.advance(61)
    await look(bench)
    assert await status(bench, job_id) is JobStatus.CANCELLING


async def test_a_job_cancelled_between_the_board_and_the_log_does_not_expire(
    bench: OrchestratorBench,
) -> None:
    job_id = await bench.planned("a", [request("1")], per_chunk=1, expires_at=at(60))
    board = await bench.board()
    await bench.job_command(job_id, Cancel())
    bench.clock.advance(61)
    task = asyncio.create_task(Expiry(board, bench.store, bench.clock).run())
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await status(bench, job_id) is JobStatus.CANCELLING


async def test_a_job_that_comes_while_waiting_is_watched(bench: OrchestratorBench) -> None:
    board = await bench.board()
    task = asyncio.create_task(Expiry(board, bench.store, bench.clock).run())
    await asyncio.sleep(0)
    submitted = await bench.submit("a", request("1"), expires_at=at(-1))
    async for batch in bench.store.read("job.>"):
        for recorded in batch:
            board.apply(recorded)
    async with asyncio.timeout(5):
        while await status(bench, submitted.job_id) is not JobStatus.EXPIRING:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
