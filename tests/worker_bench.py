"""Work for a GPU worker without a gateway: jobs planned straight into the log, hints offered by
hand, and the oracle that reads what came of it."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batch_gpu_worker.agent import Agent, StopSignal, new_worker_id
from batch_gpu_worker.engines import open_engine
from batch_gpu_worker.engines.base import Engine
from vllm_batch import ids
from vllm_batch.aggregates import chunk as rules
from vllm_batch.aggregates.chunk import Chunk
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import EventStoreError
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.event_store.protocol import append_decided, fold
from vllm_batch.events import ChunkPlanned, JobCancelRequested, Recorded
from vllm_batch.ids import JobId
from vllm_batch.local.programs import environment_of
from vllm_batch.messaging import subjects
from vllm_batch.messaging.consumer import Hint, HintQueue
from vllm_batch.segments import decode_segment
from vllm_batch.settings import Settings

CHAT = "/v1/chat/completions"
STAND_IN = Path(__file__).with_name("stand_in_vllm.py")


def chat(prompt: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": "simulated-model", "messages": messages, **fields}


def line_of(custom_id: str, body: dict[str, Any] | bytes, url: str = CHAT) -> bytes:
    """Return a line of a batch file; a body given as bytes stays as it is."""
    raw = msgspec.Raw(body if isinstance(body, bytes) else msgspec.json.encode(body))
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": raw}
    return msgspec.json.encode(line) + b"\n"


async def until(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 120
) -> None:
    """Wait for a condition, at most so long."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


def stand_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an ``engine_python`` that runs the stand-in for vLLM, restarted at once."""
    monkeypatch.setattr("batch_gpu_worker.engines.vllm.RESTART_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("batch_gpu_worker.engines.vllm.STOP_GRACE_SECONDS", 1.0)
    monkeypatch.setattr("batch_gpu_worker.engines.vllm.HEALTH_PAUSE_SECONDS", 0.02)
    python = folder / "engine python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {shlex.quote(sys.executable)} "{STAND_IN}" "$@"\n')
    python.chmod(0o755)
    return python


@dataclass
class WorkerBench:
    """Plays planner, scheduler and finalizer over a real event log and blob store."""

    store: JetStreamEventStore
    settings: Settings
    model: str = "simulated-model"

    def __post_init__(self) -> None:
        self.blobs = open_blobs(self.settings.blob_url)
        self.queue = HintQueue(self.store.js, ids.model_key(self.model))

    async def plan(
        self,
        lines: Sequence[bytes],
        *,
        chunk_requests: int = 64,
        endpoint: str = CHAT,
        missing_blob: bool = False,
    ) -> JobId:
        """Store a file and plan its chunks; nothing is offered yet."""
        job_id, blob = ids.new_job_id(), f"files/{ids.new_file_id()}"
        if not missing_blob:
            await self.blobs.put(blob, b"".join(lines))
        planned: list[ChunkPlanned] = []
        offset = 0
        for first in range(0, len(lines), chunk_requests):
            part = lines[first : first + chunk_requests]
            length = sum(map(len, part))
            planned.append(
                ChunkPlanned(
                    job_id=job_id, chunk=len(planned), blob=blob, offset=offset, length=length,
                    first_line=first + 1, count=len(part), endpoint=endpoint, model=self.model,
                )
            )  # fmt: skip
            offset += length
        await asyncio.gather(*(self.store.append(event, expected=0) for event in planned))
        return job_id

    async def offer(self, job_id: JobId, *chunks: int) -> None:
        """Offer chunks in this order."""
        for number in chunks:
            await self.queue.offer(Hint(job_id, number))

    async def submit(self, lines: Sequence[bytes], **options: Any) -> JobId:
        """Plan a job and offer all of its chunks."""
        job_id = await self.plan(lines, **options)
        per_chunk = options.get("chunk_requests", 64)
        await self.offer(job_id, *range(-(-len(lines) // per_chunk)))
        return job_id

    async def cancel(self, job_id: JobId) -> None:
        """Ask for a cancel, as the API does."""
        await self.store.append(JobCancelRequested(job_id=job_id), expected=0)

    async def events(self, subject: str) -> list[Recorded]:
        """Return what the log has."""
        return [recorded async for batch in self.store.read(subject) for recorded in batch]

    async def chunks(self, job_id: JobId) -> dict[int, Chunk]:
        """Return the job's chunks, folded."""
        folded: dict[int, Chunk] = {}
        for recorded in await self.events(subjects.chunks_of(job_id)):
            number = int(recorded.event.aggregate_id()[1])
            folded[number] = rules.evolve(folded.get(number), recorded)
        return folded

    async def chunk(self, job_id: JobId, number: int = 0) -> Chunk:
        """Return one chunk, folded."""
        state, _ = await fold(self.store, subjects.chunk(job_id, number), rules.evolve)
        assert state is not None
        return state

    async def release(self, job_id: JobId, number: int = 0) -> None:
        """Take a lease away, as the leader does."""
        state = await self.chunk(job_id, number)
        await append_decided(
            self.store,
            subjects.chunk(job_id, number),
            rules.evolve,
            lambda chunk: rules.decide(chunk, rules.Release(state.epoch, "worker_lost")),
        )

    async def completed(self, job_id: JobId, seconds: float = 240.0) -> None:
        """Wait until every chunk is completed."""

        async def all_are() -> bool:
            try:
                chunks = await self.chunks(job_id)
            except EventStoreError:
                return False  # the log is away just now
            return all(chunk.status == "completed" for chunk in chunks.values())

        await until(all_are, seconds)

    async def recorded(self, job_id: JobId) -> Counter[tuple[int, int]]:
        """Return how often each (chunk, index) has a recorded result."""
        found: Counter[tuple[int, int]] = Counter()
        for number, chunk in (await self.chunks(job_id)).items():
            for segment in chunk.segments:
                data = await self.blobs.get(segment.blob)
                assert len(data) == segment.bytes
                rows = list(decode_segment(data))
                assert segment.failed == sum(row.failed for row in rows)
                assert segment.completed == len(rows) - segment.failed
                found.update((number, row.index) for row in rows)
        return found

    async def results(self, job_id: JobId) -> dict[str, tuple[bool, dict[str, Any]]]:
        """Return (failed, result line) by custom_id, having checked that each is there once."""
        found: dict[str, tuple[bool, dict[str, Any]]] = {}
        for chunk in (await self.chunks(job_id)).values():
            for segment in chunk.segments:
                for row in decode_segment(await self.blobs.get(segment.blob)):
                    assert row.line.endswith(b"\n")
                    assert row.line.count(b"\n") == 1
                    line = msgspec.json.decode(row.line)
                    assert line["custom_id"] not in found
                    found[line["custom_id"]] = (row.failed, line)
        return found


@dataclass
class RunningAgent:
    """An agent in this process."""

    agent: Agent
    engine: Engine
    stop: StopSignal
    task: asyncio.Task[int]


@asynccontextmanager
async def running_agent(settings: Settings) -> AsyncIterator[RunningAgent]:
    """Run an agent on a connection of its own; it is asked to stop at the end, twice."""
    engine = open_engine(settings)
    stop = StopSignal()
    async with jetstream.connect(settings, source="worker") as store:
        agent = Agent(
            settings, store, open_blobs(settings.blob_url), engine,
            clock=SystemClock(), worker_id=new_worker_id(), rng=random.Random(7),
        )  # fmt: skip
        task = asyncio.create_task(agent.run(stop))
        try:
            yield RunningAgent(agent, engine, stop, task)
        finally:
            stop.ask()
            stop.ask()
            await asyncio.wait_for(task, 120)


@asynccontextmanager
async def worker_process(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker as a process; whatever is left of it at the end is killed."""
    environment = environment_of(settings.model_dump(exclude_defaults=True, exclude_none=True))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batch_gpu_worker", env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
