"""The orchestrator over a real event log: batches from submission to files.

Postgres is away in all of them: nothing here needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from typing import Any

import pytest
from nats.js.errors import NotFoundError
from tests.conftest import NatsServer
from tests.facts import append
from tests.orchestrator_bench import NO_POSTGRES, LogBench, TinyWorker, leading, until
from tests.unit.orchestrator.bench import request, worker_ready

from batch_gateway.orchestrator import scheduler
from vllm_batch import ids
from vllm_batch.aggregates.job import Cancel, JobStatus
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import ChunkLeased, FileCreated, ModelRegistered, WorkerLost
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.messaging import subjects, topology
from vllm_batch.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "postgres_dsn": NO_POSTGRES,
            "chunk_requests_max": 10,
            "lease_seconds": 1.0,
            "reconcile_seconds": 0.1,
            "cancel_grace_seconds": 0.5,
            "leader_lease_seconds": 1.0,
        }
    )


@pytest.fixture
def bench(event_store: JetStreamEventStore, settings: Settings) -> LogBench:
    return LogBench(event_store, settings)


def content(name: str, count: int) -> bytes:
    return b"".join(request(f"{name}-{n}") for n in range(count))


async def ids_in(bench: LogBench, file_id: str | None) -> list[Any]:
    return [line["custom_id"] for line in await bench.file_lines(file_id)]


async def test_batches_run_to_their_files(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    worker = TinyWorker(settings)
    async with leading(settings), worker.working():
        jobs = [
            (await bench.submit(f"j{n}", content("r", 55) + request("bad"))).job_id
            for n in range(4)
        ]
        for job_id in jobs:
            job = await bench.reach(job_id)
            assert job.status is JobStatus.COMPLETED
            assert job.ended is not None
            assert (job.ended.total, job.ended.completed, job.ended.failed) == (56, 55, 1)
            output = await ids_in(bench, job.ended.output_file_id)
            assert output == [f"r-{n}" for n in range(55)]
            assert await ids_in(bench, job.ended.error_file_id) == ["bad"]
    leases = await bench.events(subjects.every(ChunkLeased))
    assert len(leases) == 4 * 6, "every chunk was leased once"


def mixed(count: int, *models: str) -> bytes:
    return b"".join(request(f"r-{n}", model=models[n % len(models)]) for n in range(count))


async def test_a_batch_of_several_models_runs_on_the_workers_of_each(
    bench: LogBench, settings: Settings
) -> None:
    """One model has an alias, one is registered and gets its worker late: that part waits."""
    await append(
        bench.store,
        ModelRegistered(
            model_key=ids.model_key("late"), name="late", source="models/late", aliases=["best"],
            requested_by="test",
        ),
    )  # fmt: skip
    early, late = TinyWorker(settings, "worker_early"), TinyWorker(settings, "worker_late")
    async with leading(settings), early.working(models=["m"]):
        content = mixed(60, "m", "best", "late")
        job_id = (await bench.submit("j", content, metadata={"allow_mixed_models": "true"})).job_id
        async with asyncio.timeout(120):
            while sum(c.completed for c in await bench.chunks(job_id)) < 20:
                await asyncio.sleep(0.01)
        assert (await bench.job(job_id)).status is JobStatus.RUNNING
        async with late.working(models=["late"]):
            job = await bench.reach(job_id)
    assert job.status is JobStatus.COMPLETED
    assert job.ended is not None
    assert await ids_in(bench, job.ended.output_file_id) == [f"r-{n}" for n in range(60)]
    plans = [chunk.planned for chunk in await bench.chunks(job_id)]
    assert {(plan.model, plan.alias) for plan in plans} == {
        ("m", None), ("late", "best"), ("late", None),
    }  # fmt: skip
    assert {number for _, number in early.leased} == {
        plan.chunk for plan in plans if plan.model == "m"
    }


async def test_a_model_nobody_knows_fails_with_those_that_are_known(
    bench: LogBench, settings: Settings
) -> None:
    await append(
        bench.store,
        ModelRegistered(
            model_key=ids.model_key("asleep"), name="asleep", source="models/x", requested_by="test"
        ),
    )
    async with leading(settings), TinyWorker(settings).working(models=["m"]):
        job = await bench.reach((await bench.submit("j", mixed(3, "unknown"))).job_id)
    assert job.status is JobStatus.FAILED
    assert job.failed is not None
    assert job.failed.errors[0].code == "model_not_found"
    assert "'asleep', 'm'" in job.failed.errors[0].message


async def test_ten_lines_behind_many_are_served_next(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    gate = asyncio.Semaphore(0)
    worker = TinyWorker(settings, gate=gate)
    async with leading(settings), worker.working():
        large = (await bench.submit("large", content("l", 600))).job_id
        await until(lambda: len(worker.leased) > settings.release_window_chunks)
        before = len(worker.leased)
        small = (await bench.submit("small", content("s", 10))).job_id
        await until(lambda: (small, 0) in worker.leased)
        waited = worker.leased.index((small, 0)) - before
        for _ in range(100):
            gate.release()
        await bench.reach(small, JobStatus.COMPLETED)
        await bench.reach(large, JobStatus.COMPLETED)
    # What was offered before the small one came is still taken before it, and no more than that,
    # but for what was leased while it was planned.
    assert waited <= 60


async def test_offers_keep_to_the_window_and_a_newcomer_is_in_it(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    window = settings.release_window_chunks
    await worker_ready(event_store, "worker_lazy")
    for job in ("a", "b"):
        await bench.submit(job, content(job, 200))
    async with leading(settings.model_copy(update={"lease_seconds": 60})):
        await until_messages(event_store, window)
        small = (await bench.submit("c", content("c", 10))).job_id
        async with asyncio.timeout(120):
            while small.encode() not in b"".join(await hints(event_store)):
                await asyncio.sleep(0.01)
        await until_messages(event_store, window)  # what made way is offered again
        # Nothing is leased: each job gets one hint before any gets its second.
        assert small.encode() in b"".join((await hints(event_store))[:3])
        await worker_ready(event_store, "worker_lazy_too")
        await until_messages(event_store, 2 * window)


async def hints(store: JetStreamEventStore) -> list[bytes]:
    """Return the hints that are out, the oldest first."""
    state = (await store.js.stream_info(topology.WORK)).state
    found = []
    for seq in range(max(state.first_seq, 1), state.last_seq + 1):
        with contextlib.suppress(NotFoundError):  # withdrawn, or just taken
            found.append((await store.js.get_msg(topology.WORK, seq)).data or b"")
    return found


async def messages(store: JetStreamEventStore) -> int:
    return int((await store.js.stream_info(topology.WORK)).state.messages)


async def until_messages(store: JetStreamEventStore, count: int) -> None:
    async with asyncio.timeout(120):
        while await messages(store) != count:
            await asyncio.sleep(0.01)


async def test_without_a_live_worker_nothing_is_offered_and_then_at_once(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    async with leading(settings):
        await worker_ready(event_store, "worker_gone")
        await until_lost(bench, "worker_gone")
        job_id = (await bench.submit("a", content("r", 10))).job_id
        await bench.reach(job_id, JobStatus.RUNNING)
        assert await messages(event_store) == 0
        async with TinyWorker(settings).working():
            await bench.reach(job_id, JobStatus.COMPLETED)


async def until_lost(bench: LogBench, worker: str) -> WorkerLost:
    async with asyncio.timeout(120):
        while True:
            for event in await bench.events(subjects.every(WorkerLost)):
                if isinstance(event, WorkerLost) and event.worker_id == worker:
                    return event
            await asyncio.sleep(0.02)


async def until_hinted(store: JetStreamEventStore, count: int) -> None:
    """Wait until so many chunks are offered; one whose offer was not acknowledged in time is so
    twice."""
    async with asyncio.timeout(120):
        while len(set(await hints(store))) != count:
            await asyncio.sleep(0.01)


async def test_a_lost_hint_is_offered_again(
    bench: LogBench,
    event_store: JetStreamEventStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "CHECK_SECONDS", 0.2)
    slow = settings.model_copy(update={"lease_seconds": 60})
    await worker_ready(event_store, "worker_lazy")
    async with leading(slow):
        job_id = (await bench.submit("a", content("r", 30))).job_id
        await until_hinted(event_store, 3)
        await event_store.js.purge_stream(topology.WORK)
        await until_hinted(event_store, 3)
        async with TinyWorker(settings).working():
            await bench.reach(job_id, JobStatus.COMPLETED)


async def test_a_frozen_worker_loses_its_lease_and_cannot_write(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    frozen = TinyWorker(settings, "worker_frozen", gate=asyncio.Semaphore(0))
    async with leading(settings), frozen.working():
        job_id = (await bench.submit("a", content("r", 20))).job_id
        await until(lambda: len(frozen.leased) == 2)
        frozen.freeze()
        lost = await until_lost(bench, "worker_frozen")
        assert lost.reason == "silent"
        healthy = TinyWorker(settings, "worker_healthy")
        async with healthy.working():
            job = await bench.reach(job_id, JobStatus.COMPLETED)
        before = await bench.events(subjects.chunks_of(job_id))
        for key in frozen.leased:
            with pytest.raises(Exception, match="is over"):
                await frozen.finish(key)
        after = await bench.events(subjects.chunks_of(job_id))
        assert after == before, "a zombie wrote something"
    assert job.ended is not None
    assert await ids_in(bench, job.ended.output_file_id) == [f"r-{n}" for n in range(20)]
    assert {event.epoch for event in await bench.events(subjects.every(ChunkLeased))} == {1, 2}  # type: ignore[attr-defined]


async def test_a_successor_of_the_same_name_gets_the_leases_at_once(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    patient = settings.model_copy(update={"lease_seconds": 600.0})
    dead = TinyWorker(settings, "worker_1", name="gpu-7", gate=asyncio.Semaphore(0))
    async with leading(patient):
        async with dead.working():
            job_id = (await bench.submit("a", content("r", 20))).job_id
            await until(lambda: len(dead.leased) == 2)
        async with TinyWorker(settings, "worker_2", name="gpu-7").working():
            await bench.reach(job_id, JobStatus.COMPLETED, seconds=60)
    assert (await until_lost(bench, "worker_1")).reason == "replaced"


async def test_a_worker_that_was_only_frozen_gets_work_again(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    worker = TinyWorker(settings)
    async with leading(settings), worker.working():
        worker.freeze()
        await until_lost(bench, worker.worker_id)
        job_id = (await bench.submit("a", content("r", 20))).job_id
        worker.frozen = False
        await bench.reach(job_id, JobStatus.COMPLETED)


async def test_a_chunk_that_keeps_failing_is_offered_ever_more_slowly(
    bench: LogBench,
    event_store: JetStreamEventStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "_FAULT_PAUSE_SECONDS", 0.1)
    worker = TinyWorker(settings)
    worker.release_reason = "error"
    async with leading(settings), worker.working():
        job_id = (await bench.submit("a", content("r", 5))).job_id
        await until(lambda: len(worker.leased) == 3)
        assert await bench.events(subjects.every(WorkerLost)) == []
        times = [
            recorded.time
            async for batch in event_store.read(subjects.every(ChunkLeased))
            for recorded in batch
        ]
        worker.release_reason = None
        await bench.reach(job_id, JobStatus.COMPLETED)
    pauses = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    assert pauses[0] >= 0.19
    assert pauses[1] >= 0.39


async def test_a_cancel_frees_the_way_and_leaves_partial_files(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    gate = asyncio.Semaphore(2)
    worker = TinyWorker(settings, gate=gate)
    async with leading(settings), worker.working():
        job_id = (await bench.submit("a", content("r", 300))).job_id
        await until(lambda: len(worker.leased) > 4)
        await bench.job_command(job_id, Cancel())
        job = await bench.reach(job_id, JobStatus.CANCELLED)
        other = (await bench.submit("b", content("o", 10))).job_id
        for _ in range(100):
            gate.release()
        await bench.reach(other, JobStatus.COMPLETED)
    assert job.ended is not None
    assert (job.ended.total, job.ended.completed, job.ended.failed) == (300, 20, 0)
    output = await ids_in(bench, job.ended.output_file_id)
    errors = await bench.file_lines(job.ended.error_file_id)
    assert len(output) == 20
    assert sorted([*output, *(str(line["custom_id"]) for line in errors)]) == sorted(
        f"r-{n}" for n in range(300)
    )
    codes: set[Any] = {line["error"]["code"] for line in errors}  # type: ignore[index]
    assert codes == {"batch_cancelled"}
    assert worker.lost, "what was still worked on was fenced"


async def test_nats_may_go_and_come_back(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings, nats_server: NatsServer
) -> None:
    gate = asyncio.Semaphore(3)
    worker = TinyWorker(settings, gate=gate)
    async with leading(settings), worker.working():
        job_id = (await bench.submit("a", content("r", 200))).job_id
        await until(lambda: len(worker.leased) >= 5)
        nats_server.kill()
        await asyncio.to_thread(nats_server.start)
        for _ in range(100):
            gate.release()
        job = await bench.reach(job_id, JobStatus.COMPLETED, seconds=60)
    assert job.ended is not None
    assert await ids_in(bench, job.ended.output_file_id) == [f"r-{n}" for n in range(200)]


async def test_two_leaders_at_once_do_no_harm(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    gate = asyncio.Semaphore(0)
    worker = TinyWorker(settings, gate=gate)
    async with leading(settings), leading(settings), worker.working():
        jobs = [(await bench.submit(f"j{n}", content("r", 95))).job_id for n in range(6)]
        await bench.job_command(jobs[0], Cancel())
        for _ in range(100):
            gate.release()
        ended = [await bench.reach(job_id) for job_id in jobs]
    assert [job.status for job in ended] == [JobStatus.CANCELLED, *[JobStatus.COMPLETED] * 5]
    for job in ended[1:]:
        assert job.ended is not None
        assert await ids_in(bench, job.ended.output_file_id) == [f"r-{n}" for n in range(95)]
    created = [event.job_id for event in await bench.events(subjects.every(FileCreated))]  # type: ignore[attr-defined]
    for job_id in jobs[1:]:
        assert created.count(job_id) == 1
        assert len(await of_job(bench, job_id, "job")) == 4
        leases = [
            event
            for event in await of_job(bench, job_id, "chunk")
            if isinstance(event, ChunkLeased)
        ]
        assert len(leases) == 10


async def of_job(bench: LogBench, job_id: JobId, noun: str) -> list[Any]:
    subject = subjects.job(job_id) if noun == "job" else subjects.chunks_of(job_id)
    return await bench.events(subject)


async def test_a_lease_of_nobody_is_taken_away(
    bench: LogBench, event_store: JetStreamEventStore, settings: Settings
) -> None:
    job_id = await bench.planned("a", [request(str(n)) for n in range(3)], per_chunk=3)
    await bench.lease(job_id, 0, WorkerId("worker_nobody"))
    async with leading(settings), TinyWorker(settings).working():
        await bench.reach(job_id, JobStatus.COMPLETED)
        lost = await bench.events(subjects.every(WorkerLost))
        assert [event for event in lost if event.worker_id == "worker_nobody"] == []  # type: ignore[attr-defined]
