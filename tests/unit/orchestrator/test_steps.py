"""What has to be done next, in every state a crash can leave a job in."""

from __future__ import annotations

import pytest
from tests.unit.orchestrator.bench import OrchestratorBench, request

from batch_gateway.orchestrator.steps import (
    CloseChunks,
    Finalize,
    Plan,
    Wait,
    WriteFiles,
    next_step,
)
from vllm_batch.aggregates.chunk import Close, Release
from vllm_batch.aggregates.job import Cancel, CloseWindow, Command
from vllm_batch.aggregates.job import Finalize as FinalizeJob
from vllm_batch.ids import JobId

GRACE = 5.0


async def step_of(bench: OrchestratorBench, job_id: JobId, later: float = 0.0) -> object:
    board = await bench.board()
    return next_step(board.jobs[job_id], bench.clock.monotonic() + later, GRACE)


async def two_chunks(bench: OrchestratorBench) -> JobId:
    return await bench.planned("a", [request(str(n)) for n in range(4)], per_chunk=2)


async def test_a_submitted_job_is_planned(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", request("1"))
    assert await step_of(bench, submitted.job_id) == Plan()


async def test_a_running_job_waits_for_its_chunks(bench: OrchestratorBench) -> None:
    job_id = await two_chunks(bench)
    assert await step_of(bench, job_id) == Wait()
    for number in (0, 1):
        await bench.lease(job_id, number)
        assert await step_of(bench, job_id) == Wait()
        await bench.hand_in(job_id, number, {0: False, 1: False}, end=True)
    assert await step_of(bench, job_id) == Finalize()


async def test_a_finalizing_job_gets_its_files(bench: OrchestratorBench) -> None:
    job_id = await two_chunks(bench)
    await bench.job_command(job_id, Cancel())
    await bench.job_command(job_id, FinalizeJob())
    assert await step_of(bench, job_id) == WriteFiles()


@pytest.mark.parametrize(
    ("command", "reason"), [(Cancel(), "cancelled"), (CloseWindow(), "expired")]
)
async def test_a_job_that_ends_early_closes_ready_chunks_at_once_and_leased_ones_later(
    bench: OrchestratorBench, command: Command, reason: str
) -> None:
    job_id = await two_chunks(bench)
    await bench.lease(job_id, 1)
    await bench.job_command(job_id, command)
    assert await step_of(bench, job_id) == CloseChunks((0,), reason)  # type: ignore[arg-type]
    await bench.chunk_command(job_id, 0, Close(reason))  # type: ignore[arg-type]
    assert await step_of(bench, job_id) == Wait(bench.clock.monotonic() + GRACE)
    assert await step_of(bench, job_id, GRACE) == CloseChunks((1,), reason)  # type: ignore[arg-type]
    await bench.chunk_command(job_id, 1, Release(1, "cancelled"))
    assert await step_of(bench, job_id) == CloseChunks((1,), reason)  # type: ignore[arg-type]
    await bench.chunk_command(job_id, 1, Close(reason))  # type: ignore[arg-type]
    assert await step_of(bench, job_id) == Finalize()


@pytest.mark.parametrize("command", [Cancel(), CloseWindow()])
async def test_a_job_given_up_before_it_was_planned_goes_straight_to_its_end(
    bench: OrchestratorBench, command: Command
) -> None:
    submitted = await bench.submit("a", request("1"))
    await bench.job_command(submitted.job_id, command)
    assert await step_of(bench, submitted.job_id) == Finalize()
