"""A stuck batch is explained; what is leased and does not move is freed, in the end given up."""

from __future__ import annotations

from tests.facts import append, submitted
from tests.unit.watchdog.bench import WatchdogBench

from vllm_batch.events import (
    ChunkClosed,
    ChunkReleased,
    JobStuck,
    WorkerCrashLooping,
)
from vllm_batch.ids import JobId, WorkerId


async def said(bench: WatchdogBench) -> list[JobStuck]:
    return [event for event in await bench.events() if isinstance(event, JobStuck)]


async def look(bench: WatchdogBench) -> list[str]:
    """Have a fresh watchdog look once; return every reason given so far."""
    await (await bench.stuck_jobs()).check()
    return [event.reason for event in await said(bench)]


async def test_a_batch_that_moves_is_not_stuck(bench: WatchdogBench) -> None:
    await bench.started("w1")
    job = await bench.job()
    await bench.lease(job)
    for _ in range(5):
        bench.clock.advance(90)
        await bench.progress(job)
        assert await look(bench) == []


async def test_a_batch_without_a_worker_is_announced_once_and_never_failed(
    bench: WatchdogBench,
) -> None:
    await bench.job()
    bench.clock.advance(101)
    assert await look(bench) == ["no_worker"]
    for _ in range(20):
        bench.clock.advance(200)
        await look(bench)
    assert [event.reason for event in await said(bench)] == ["no_worker"]
    assert not [e for e in await bench.events("chunk.>") if isinstance(e, ChunkClosed)]


async def test_the_reason_is_told_anew_when_it_changes(bench: WatchdogBench) -> None:
    await bench.job()
    bench.clock.advance(101)
    assert await look(bench) == ["no_worker"]
    await bench.started("w1")
    await bench.lost("w1")
    assert await look(bench) == ["no_worker", "workers_lost"]
    event = WorkerCrashLooping(worker_id=WorkerId("w1"), restarts=5, window_seconds=600.0)
    await append(bench.store, event)
    assert (await look(bench))[-1] == "workers_crash_looping"
    assert "gpu" in (await said(bench))[-1].detail


async def test_a_file_that_nobody_reads_is_announced(bench: WatchdogBench) -> None:
    await append(bench.store, submitted("batch_1"))
    bench.clock.advance(101)
    assert await look(bench) == ["not_planned"]


async def test_chunks_that_nobody_takes_are_announced(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.job(chunks=2)
    bench.clock.advance(101)
    assert await look(bench) == ["not_leased"]
    assert "2 chunks" in (await said(bench))[0].detail


async def test_a_batch_that_waits_for_its_turn_is_not_stuck(bench: WatchdogBench) -> None:
    await bench.started("w1")
    busy = await bench.job("batch_busy")
    await bench.lease(busy)
    await bench.job("batch_waiting")
    bench.clock.advance(101)
    await bench.progress(busy)
    assert await look(bench) == []


async def test_a_lease_without_progress_is_taken_away(bench: WatchdogBench) -> None:
    await bench.started("w1")
    job = await bench.job(chunks=2)
    await bench.lease(job, 0)
    await bench.lease(job, 1)
    for _ in range(3):
        bench.clock.advance(50)
        await bench.progress(job, 1)  # the batch as a whole moves
    assert await look(bench) == ["no_progress"]
    (event,) = await said(bench)
    assert (event.chunks, event.idle_seconds) == ([0], 150)
    assert "gpu" in event.detail
    released = [e for e in await bench.events("chunk.>") if isinstance(e, ChunkReleased)]
    assert [(e.chunk, e.epoch, e.reason) for e in released] == [(0, 1, "error")]
    assert await look(bench) == ["no_progress"]  # ready now: nothing more to say


async def test_what_was_taken_away_gets_time_to_be_leased_again(bench: WatchdogBench) -> None:
    await bench.started("w1")
    job = await bench.job()
    await bench.lease(job)
    bench.clock.advance(101)
    assert await look(bench) == ["no_progress"]
    bench.clock.advance(99)
    assert await look(bench) == ["no_progress"]
    bench.clock.advance(2)
    assert await look(bench) == ["no_progress", "not_leased"]


async def rounds(bench: WatchdogBench, job: JobId, count: int) -> None:
    for _ in range(count):
        await bench.lease(job)
        bench.clock.advance(101)
        await look(bench)


async def test_after_several_rounds_the_remaining_requests_are_given_up(
    bench: WatchdogBench,
) -> None:
    await bench.started("w1")
    job = await bench.job()
    await rounds(bench, job, 3)
    assert [event.reason for event in await said(bench)] == ["no_progress"] * 3
    chunk_events = await bench.events("chunk.>")
    assert len([e for e in chunk_events if isinstance(e, ChunkReleased)]) == 2
    last = chunk_events[-1]
    assert isinstance(last, ChunkClosed)
    assert last.reason == "stuck"


async def test_a_result_begins_the_rounds_anew(bench: WatchdogBench) -> None:
    await bench.started("w1")
    job = await bench.job()
    await rounds(bench, job, 2)
    await bench.lease(job)
    await bench.progress(job)
    bench.clock.advance(101)
    await look(bench)
    assert not [e for e in await bench.events("chunk.>") if isinstance(e, ChunkClosed)]
    assert isinstance((await bench.events("chunk.>"))[-1], ChunkReleased)


async def test_a_watchdog_that_stopped_between_word_and_deed_is_continued(
    bench: WatchdogBench,
) -> None:
    await bench.started("w1")
    job = await bench.job()
    await bench.lease(job)
    bench.clock.advance(101)
    event = JobStuck(job_id=job, reason="no_progress", detail="…", idle_seconds=101, chunks=[0])
    await append(bench.store, event)
    assert await look(bench) == ["no_progress"]  # said already
    assert isinstance((await bench.events("chunk.>"))[-1], ChunkReleased)


async def test_two_watchdogs_say_it_once(bench: WatchdogBench) -> None:
    await bench.started("w1")
    job = await bench.job()
    await bench.lease(job)
    bench.clock.advance(101)
    one, other = await bench.stuck_jobs(), await bench.stuck_jobs()
    await one.check()
    await other.check()
    assert len(await said(bench)) == 1
    released = [e for e in await bench.events("chunk.>") if isinstance(e, ChunkReleased)]
    assert len(released) == 1
