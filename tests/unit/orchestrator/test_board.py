"""The board: what is open, folded once however often it is delivered, and no more than that."""

from __future__ import annotations

import asyncio
import tracemalloc

from tests.unit.orchestrator.bench import OrchestratorBench, request, worker_ready

from batch_gateway.orchestrator import board_feed
from batch_gateway.orchestrator.board import Board, JobView
from vllm_batch.aggregates.chunk import ChunkStatus, Release
from vllm_batch.aggregates.job import Cancel, Finalize, Finish, JobStatus
from vllm_batch.events import ChunkPlanned, Usage, WorkerStopped
from vllm_batch.ids import JobId, WorkerId


def facts(view: JobView) -> tuple[object, ...]:
    chunks = {number: (one.chunk, one.seq, one.leased_seq) for number, one in view.chunks.items()}
    return view.job, view.seq, chunks, view.ready, view.leased


async def a_busy_log(bench: OrchestratorBench) -> JobId:
    await worker_ready(bench.store, "w")
    job_id = await bench.planned("a", [request(str(n)) for n in range(6)], per_chunk=2)
    await bench.lease(job_id, 0)
    await bench.hand_in(job_id, 0, {0: False, 1: True}, end=True)
    await bench.lease(job_id, 1)
    await bench.hand_in(job_id, 1, {1: False})
    return job_id


async def test_it_has_open_jobs_chunks_and_workers(bench: OrchestratorBench) -> None:
    job_id = await a_busy_log(bench)
    board = await bench.board()
    view = board.jobs[job_id]
    assert view.job.status is JobStatus.RUNNING
    assert (view.ready, view.leased) == ({2}, {1})
    assert view.chunks[0].chunk.status is ChunkStatus.COMPLETED
    assert view.chunks[1].chunk.completed == 1
    assert board.workers[WorkerId("w")].leases == {(job_id, 1)}
    assert board.models == {"m"}
    assert board.position == await bench.store.last_sequence()


async def test_what_is_delivered_twice_changes_nothing(bench: OrchestratorBench) -> None:
    job_id = await a_busy_log(bench)
    board = await bench.board()
    before = facts(board.jobs[job_id])
    async for batch in bench.store.read(">"):
        for recorded in batch:
            board.apply(recorded)
    assert facts(board.jobs[job_id]) == before
    assert board.workers[WorkerId("w")].leases == {(job_id, 1)}


async def test_following_leads_to_the_same_board_as_reading(bench: OrchestratorBench) -> None:
    followed = Board(bench.clock.monotonic)
    task = asyncio.create_task(board_feed.follow(bench.store, followed))
    job_id = await a_busy_log(bench)
    await bench.chunk_command(job_id, 1, Release(1, "worker_lost"))
    async with asyncio.timeout(5):
        await followed.reached(await bench.store.last_sequence())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    read = await bench.board()
    assert facts(followed.jobs[job_id]) == facts(read.jobs[job_id])
    assert followed.workers == read.workers


async def test_a_finished_job_leaves_nothing(bench: OrchestratorBench) -> None:
    job_id = await a_busy_log(bench)
    board = await bench.board()
    watch = board.watch()
    watch.take()
    await bench.job_command(job_id, Cancel())
    await bench.job_command(job_id, Finalize())
    end = Finish(total=6, completed=2, failed=1, usage=Usage(), output_file_id=None,
                 error_file_id=None)  # fmt: skip
    await bench.job_command(job_id, end)
    async for batch in bench.store.read(">"):
        for recorded in batch:
            board.apply(recorded)
    assert board.jobs == {}
    assert board.workers[WorkerId("w")].leases == set()
    assert watch.take() == {(job_id, None)}
    assert (await bench.board()).jobs == {}


async def test_a_chunk_that_comes_back_is_noted_as_ready(bench: OrchestratorBench) -> None:
    job_id = await a_busy_log(bench)
    board = await bench.board()
    watch = board.watch()
    assert watch.take() == {(job_id, None), (job_id, 2)}
    board.apply(await bench.chunk_command(job_id, 1, Release(1, "error")))
    assert watch.take() == {(job_id, None), (job_id, 1)}
    assert board.jobs[job_id].chunks[1].faults == 1


async def test_a_stopped_worker_is_remembered_only_while_it_holds_leases(
    bench: OrchestratorBench,
) -> None:
    job_id = await a_busy_log(bench)
    board = await bench.board()
    seq = board.workers[WorkerId("w")].seq
    event = WorkerStopped(worker_id=WorkerId("w"), reason="drained")
    board.apply(await bench.store.append(event, expected=seq))
    assert board.workers[WorkerId("w")].ended_seq is not None
    board.apply(await bench.chunk_command(job_id, 1, Release(1, "worker_lost")))
    assert board.workers == {}


async def test_a_watch_waits_no_longer_than_it_may() -> None:
    watch = Board(lambda: 0.0).watch()
    assert await watch.wait(0.01) == set()
    watch.wake()
    assert await watch.wait(5) == set()


async def test_two_hundred_thousand_requests_are_small(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("big", request("1"))
    for number in range(800):
        planned = ChunkPlanned(
            job_id=submitted.job_id, chunk=number, blob="files/file-big", offset=number, length=1,
            first_line=1, count=250, endpoint="/v1/chat/completions", model="m",
        )  # fmt: skip
        await bench.store.append(planned, expected=0)
    tracemalloc.start()
    board = await bench.board()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(board.jobs[submitted.job_id].ready) == 800
    assert size < 3_000_000
