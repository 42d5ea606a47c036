"""Requests in flight and results at risk stay within their bounds, whatever the log does."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.gpu_worker.bench import ScriptedEngine, effort_meter, held
from tests.worker_bench import until

from batch_gpu_worker.admission import Admission, in_flight_max
from batch_gpu_worker.checkpoint import Checkpointer
from batch_gpu_worker.engines.base import EngineResponse
from batch_gpu_worker.holdings import HeldChunk, Holdings
from batch_gpu_worker.request_run import RequestRunner, TimeLimit
from batch_gpu_worker.ward import Ward
from vllm_batch.aggregates import chunk as rules
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.blobs import BlobStore, open_blobs
from vllm_batch.errors import EventStoreUnavailable, StorageFull
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.event_store.protocol import append_decided, fold
from vllm_batch.events import Event, Recorded, Usage
from vllm_batch.ids import EventId, JobId
from vllm_batch.messaging import subjects
from vllm_batch.segments import decode_segment
from vllm_batch.settings import Settings

OK = EngineResponse(200, b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}')


class MoodyStore(MemoryEventStore):
    """Is away while `away` is set."""

    away = False
    refused = 0

    async def append(
        self, event: Event, *, expected: int, event_id: EventId | None = None, **more: Any
    ) -> Recorded:
        if self.away:
            self.refused += 1
            raise EventStoreUnavailable("away")
        return await super().append(event, expected=expected, event_id=event_id)


class FullBlobs:
    """A blob store with no space left while `full` is set."""

    def __init__(self, blobs: BlobStore) -> None:
        self.full = False
        self._blobs = blobs

    async def put(self, key: str, data: bytes) -> None:
        if self.full:
            raise StorageFull(f"no space left to store {key}")
        await self._blobs.put(key, data)

    async def get(self, key: str) -> bytes:
        return await self._blobs.get(key)


@dataclass
class Works:
    """A worker without hints: chunks are added by hand."""

    store: MoodyStore
    blobs: FullBlobs
    holdings: Holdings
    admission: Admission
    checkpointer: Checkpointer
    lost: list[HeldChunk]

    async def add(self, job: str = "batch_j", chunk: int = 0, *, count: int) -> HeldChunk:
        new = await held(self.store, job, chunk, count=count)
        self.holdings.add(new)
        self.admission.pump()
        return new

    async def state(self, job: str = "batch_j", chunk: int = 0) -> Chunk:
        subject = subjects.chunk(JobId(job), chunk)
        state, _ = await fold(self.store, subject, rules.evolve)
        assert state is not None
        return state

    async def becomes(self, status: str, job: str = "batch_j", chunk: int = 0) -> Chunk:
        async def is_so() -> bool:
            return (await self.state(job, chunk)).status == status

        await until(is_so, 10)
        return await self.state(job, chunk)


@asynccontextmanager
async def works(
    tmp_path: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[Works]:
    monkeypatch.setattr("batch_gpu_worker.checkpoint.RETRY_SECONDS", 0.01)
    limits = Settings(home=tmp_path, **settings)
    store, blobs = MoodyStore(), FullBlobs(open_blobs(limits.blob_url))
    holdings = Holdings()
    lost: list[HeldChunk] = []

    def pump() -> None:
        admission.pump()

    def lose(chunk: HeldChunk) -> None:
        admission.abort(chunk)
        lost.append(chunk)

    checkpointer = Checkpointer(
        blobs,  # type: ignore[arg-type]
        holdings, limits,
        on_durable=pump, on_lost=lose,
    )  # fmt: skip
    runner = RequestRunner(
        engine, limits, TimeLimit(600, time.monotonic), random.Random(1), Ward(engine),
        effort=effort_meter(),
    )  # fmt: skip
    admission = Admission(holdings, runner, checkpointer, limits)
    flushing = asyncio.create_task(checkpointer.run())
    try:
        yield Works(store, blobs, holdings, admission, checkpointer, lost)
    finally:
        for chunk in holdings:
            admission.abort(chunk)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)


async def test_a_chunk_is_completed_with_every_result_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with works(tmp_path, ScriptedEngine(OK), monkeypatch) as w:
        await w.add(count=100)
        chunk = await w.becomes("completed")
        indexes = [
            row.index
            for segment in chunk.segments
            for row in decode_segment(await w.blobs.get(segment.blob))
        ]
        assert sorted(indexes) == list(range(100))
        assert (chunk.completed, chunk.failed) == (100, 0)
        assert chunk.usage == Usage(100, 0, 200)
        await until(lambda: len(w.holdings) == 0)
        assert w.checkpointer.undurable == w.admission.in_flight == 0


async def test_the_engine_gets_its_fill_over_chunks_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = asyncio.Event()

    async def wait() -> None:
        await hold.wait()

    engine = ScriptedEngine(wait)
    settings = {"engine_max_num_seqs": 5, "in_flight_factor": 2.0}
    assert in_flight_max(Settings(home=tmp_path, **settings)) == 10  # type: ignore[arg-type]
    async with works(tmp_path, engine, monkeypatch, **settings) as w:
        for number in range(4):
            await w.add("batch_j", number, count=4)
        await asyncio.sleep(0)
        assert len(engine.bodies) == w.admission.in_flight == 10
        assert w.holdings.waiting == 6
        hold.set()
        for number in range(4):
            await w.becomes("completed", "batch_j", number)


async def test_results_at_risk_are_bounded_while_the_log_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(OK)
    settings = {"engine_max_num_seqs": 4, "in_flight_factor": 1.0, "flush_results": 6}
    async with works(tmp_path, engine, monkeypatch, **settings) as w:
        chunk = await held(w.store, count=50)
        w.store.away = True
        w.holdings.add(chunk)
        w.admission.pump()
        await until(lambda: w.checkpointer.undurable == 10)
        refused = w.store.refused
        await until(lambda: w.store.refused > refused + 3)
        assert len(engine.bodies) == 10  # in flight 4 + one flush of 6
        w.store.away = False
        state = await w.becomes("completed")
        assert state.completed == 50
        assert len(engine.bodies) == 50  # nothing was computed twice


async def test_a_full_blob_store_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(OK)
    async with works(tmp_path, engine, monkeypatch, flush_results=4) as w:
        w.blobs.full = True
        await w.add(count=30)
        await until(lambda: w.checkpointer.undurable == 30)
        assert (await w.state()).status is ChunkStatus.LEASED
        w.blobs.full = False
        assert (await w.becomes("completed")).completed == 30
        assert len(engine.bodies) == 30


async def test_results_are_flushed_after_a_while_even_if_they_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = asyncio.Event()
    engine = ScriptedEngine(OK, hold.wait)
    async with works(tmp_path, engine, monkeypatch, flush_seconds=0.05) as w:
        await w.add(count=2)
        await until(lambda: progressed(w, 1))
        hold.set()
        assert len((await w.becomes("completed")).segments) == 2


async def progressed(w: Works, completed: int) -> bool:
    return (await w.state()).completed == completed


async def test_a_cancelled_job_stops_in_the_engine_and_hands_in_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted = 0

    async def hang() -> None:
        nonlocal aborted
        try:
            await asyncio.Event().wait()
        finally:
            aborted += 1

    engine = ScriptedEngine(OK, OK, hang)
    async with works(tmp_path, engine, monkeypatch, engine_max_num_seqs=4) as w:
        chunk = await w.add(count=50)
        await until(lambda: w.checkpointer.undurable == 2)
        w.admission.end(chunk, "cancelled")
        state = await w.becomes("ready")
        assert state.completed == 2
        await until(lambda: w.admission.in_flight == 0)
        assert aborted == 8
        assert w.holdings.waiting == len(w.holdings) == 0
        last = [e async for b in w.store.read(subjects.chunk(JobId("batch_j"), 0)) for e in b][-1]
        assert getattr(last.event, "reason", None) == "cancelled"


async def test_who_lost_the_lease_drops_its_results_and_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = asyncio.Event()
    engine = ScriptedEngine(OK, hold.wait)
    async with works(tmp_path, engine, monkeypatch, flush_seconds=60) as w:
        chunk = await w.add(count=40)
        await until(lambda: w.checkpointer.undurable == 1)
        await append_decided(
            w.store, subjects.chunk(chunk.job_id, 0), rules.evolve,
            lambda state: rules.decide(state, rules.Release(1, "worker_lost")),
        )  # fmt: skip
        before = await w.store.last_sequence()
        await w.checkpointer.flush()
        await until(lambda: w.admission.in_flight == 0)
        assert w.lost == [chunk]
        assert w.checkpointer.undurable == len(w.holdings) == 0
        assert await w.store.last_sequence() == before


async def test_a_closing_worker_begins_nothing_and_lets_go_what_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = asyncio.Event()
    engine = ScriptedEngine(hold.wait)
    settings = {"engine_max_num_seqs": 3, "in_flight_factor": 1.0}
    async with works(tmp_path, engine, monkeypatch, **settings) as w:
        await w.add("batch_a", 0, count=5)
        await w.add("batch_b", 0, count=5)
        w.admission.close("drained")
        assert (await w.becomes("ready", "batch_b")).completed == 0
        hold.set()
        assert (await w.becomes("ready", "batch_a")).completed == 3
        assert len(engine.bodies) == 3
