"""What the orchestrator's unit tests stand on: a log in memory, blobs in a folder, a clock that is
moved by hand, and events as the other services would append them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from batch_gateway.orchestrator import board_feed
from batch_gateway.orchestrator.board import Board
from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import Chunk
from vllm_batch.aggregates.job import Job
from vllm_batch.batch_file import response_line
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import ManualClock
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import (
    ChunkPlanned,
    FileUploaded,
    JobSubmitted,
    Recorded,
    Segment,
    Usage,
    WorkerReady,
    WorkerStarted,
)
from vllm_batch.ids import FileId, JobId, ProjectId, WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.segments import Result, encode_segment, segment_key
from vllm_batch.settings import Settings

CHAT = "/v1/chat/completions"
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def request(custom_id: str, *, model: str = "m", padding: int = 0) -> bytes:
    """Return a line of a batch file."""
    body = {"model": model, "messages": [], "x": "x" * padding}
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line).encode() + b"\n"


def job_submitted(name: str, **changes: object) -> JobSubmitted:
    """Return a submission of job ``batch_<name>`` for the file ``file-<name>``."""
    fields: dict[str, object] = {
        "job_id": JobId(f"batch_{name}"),
        "project": ProjectId("p"),
        "input_file_id": FileId(f"file-{name}"),
        "endpoint": CHAT,
        "completion_window": "24h",
        "expires_at": int(START.timestamp()) + 86_400,
        **changes,
    }
    return JobSubmitted(**fields)  # type: ignore[arg-type]


@dataclass(repr=False)
class OrchestratorBench:
    """A store, blobs, a clock, and shortcuts to what other services do."""

    home: Path
    overrides: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = Settings(home=self.home, **self.overrides)  # type: ignore[arg-type]
        self.clock = ManualClock(START)
        self.store = MemoryEventStore(clock=self.clock)
        self.blobs = open_blobs(self.settings.blob_url)

    async def board(self) -> Board:
        """Return the board as of now."""
        return await board_feed.load(self.store, self.clock.monotonic)

    async def upload(self, name: str, content: bytes, *, expires_at: int | None = None) -> str:
        """Store a file; return its blob key."""
        blob = f"files/file-{name}"
        await self.blobs.put(blob, content)
        event = FileUploaded(
            file_id=FileId(f"file-{name}"), project=ProjectId("p"), filename="in.jsonl",
            purpose="batch", bytes=len(content), sha256="0" * 64, lines=content.count(b"\n"),
            blob=blob, expires_at=expires_at,
        )  # fmt: skip
        await self.store.append(event, expected=0)
        return blob

    async def submit(self, name: str, content: bytes, **changes: object) -> JobSubmitted:
        """Upload and submit."""
        await self.upload(name, content)
        event = job_submitted(name, **changes)
        await self.store.append(event, expected=0)
        return event

    async def job_command(self, job_id: JobId, command: job_rules.Command) -> Recorded:
        """Have a command recorded."""
        recorded, _ = await append_decided(
            self.store, subjects.job(job_id), job_rules.evolve,
            lambda job: job_rules.decide(job, command),
        )  # fmt: skip
        return recorded

    async def chunk_command(
        self, job_id: JobId, number: int, command: chunk_rules.Command
    ) -> Recorded:
        """Have a command recorded."""
        recorded, _ = await append_decided(
            self.store, subjects.chunk(job_id, number), chunk_rules.evolve,
            lambda chunk: chunk_rules.decide(chunk, command),
        )  # fmt: skip
        return recorded

    async def job(self, job_id: JobId) -> Job:
        """Return the job, folded."""
        return await job_of(self.store, job_id)

    async def chunks(self, job_id: JobId) -> list[Chunk]:
        """Return the job's chunks, folded, in order."""
        return await chunks_of(self.store, job_id)

    async def planned(
        self, name: str, lines: Sequence[bytes], *, per_chunk: int, **changes: object
    ) -> JobId:
        """Submit a job and put its chunks on record, as the planner does."""
        submitted = await self.submit(name, b"".join(lines), **changes)
        offset = 0
        for number, first in enumerate(range(0, len(lines), per_chunk)):
            part = lines[first : first + per_chunk]
            length = sum(map(len, part))
            event = ChunkPlanned(
                job_id=submitted.job_id, chunk=number, blob=f"files/file-{name}", offset=offset,
                length=length, first_line=first + 1, count=len(part), endpoint=CHAT, model="m",
            )  # fmt: skip
            await self.store.append(event, expected=0)
            offset += length
        chunks = -(-len(lines) // per_chunk)
        await self.job_command(submitted.job_id, job_rules.Start(len(lines), chunks, "m"))
        return submitted.job_id

    async def lease(self, job_id: JobId, number: int, worker: str = "w") -> None:
        """Lease a chunk."""
        await self.chunk_command(job_id, number, chunk_rules.Lease(WorkerId(worker)))

    async def hand_in(
        self, job_id: JobId, number: int, results: dict[int, bool], *, end: bool = False
    ) -> None:
        """Record results of a leased chunk, index to whether it failed."""
        chunk = (await self.chunks(job_id))[number]
        segment, usage = await self.segment(chunk, results)
        command = (
            chunk_rules.Complete(chunk.epoch, segment, usage)
            if end
            else chunk_rules.Record(chunk.epoch, segment, usage)
        )
        await self.chunk_command(job_id, number, command)

    async def segment(self, chunk: Chunk, results: dict[int, bool]) -> tuple[Segment, Usage]:
        """Store a segment with a line for each result."""
        planned = chunk.planned
        lines = await self.blobs.get(planned.blob, start=planned.offset, length=planned.length)
        ids = [json.loads(line)["custom_id"] for line in lines.split(b"\n") if line.strip()]
        rows = [
            Result(index, failed, result_line(planned.job_id, planned.chunk, index, ids[index]))
            for index, failed in results.items()
        ]
        key = segment_key(planned.job_id, planned.chunk, chunk.epoch, len(chunk.segments) + 1)
        data = encode_segment(rows)
        await self.blobs.put(key, data)
        failed = sum(results.values())
        usage = Usage(*(value * (len(rows) - failed) for value in (10, 1, 5, 2)))
        return Segment(key, len(data), len(rows) - failed, failed), usage

    async def file_lines(self, file_id: str | None) -> list[dict[str, object]]:
        """Return the lines of a file that the orchestrator wrote."""
        if file_id is None:
            return []
        content = await self.blobs.get(f"files/{file_id}")
        assert content.endswith(b"\n")
        return [json.loads(line) for line in content.splitlines()]


def result_line(job_id: JobId, chunk: int, index: int, custom_id: str) -> bytes:
    """Return the line of an answer."""
    return response_line(
        job_id, chunk, index, custom_id=custom_id, status_code=200, request_id="r",
        body=b'{"answer":"%b"}' % custom_id.encode(),
    )  # fmt: skip


async def job_of(store: EventStore, job_id: JobId) -> Job:
    """Return the job, folded."""
    state, _ = await fold(store, subjects.job(job_id), job_rules.evolve)
    assert state is not None
    return state


async def chunks_of(store: EventStore, job_id: JobId) -> list[Chunk]:
    """Return the job's chunks, folded, in order."""
    folded: dict[int, Chunk] = {}
    async for batch in store.read(subjects.chunks_of(job_id)):
        for recorded in batch:
            number = int(recorded.event.aggregate_id()[1])
            folded[number] = chunk_rules.evolve(folded.get(number), recorded)
    return [folded[number] for number in sorted(folded)]


async def worker_ready(
    store: EventStore, worker: str, *, name: str = "", models: Sequence[str] = ("m",)
) -> None:
    """Announce a worker."""
    worker_id = WorkerId(worker)
    started = await store.append(
        WorkerStarted(
            worker_id=worker_id, name=name or worker, host="h", pid=1, engine="simulated",
            version="0",
        ),
        expected=0,
    )  # fmt: skip
    await store.append(
        WorkerReady(worker_id=worker_id, models=list(models), in_flight_max=8),
        expected=started.seq,
    )
