"""A long history for the admin UI's benchmark: batches, workers and their pulse, log lines.

Events are written into the log in their order, without the checks of an append. One large batch is
in the middle of its work, with real segments in the blob store; all others have ended.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

import msgspec

from tests.benchmarks.replay import PUBLISHED_AT_ONCE
from vllm_batch import ids
from vllm_batch.blobs import BlobStore
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    Event,
    FileUploaded,
    JobCompleted,
    JobFinalizing,
    JobStarted,
    JobSubmitted,
    Segment,
    Usage,
    WorkerReady,
    WorkerStarted,
    encode,
)
from vllm_batch.heartbeats import GpuMetrics, Heartbeat
from vllm_batch.ids import FileId, JobId, ProjectId, WorkerId
from vllm_batch.log_stream import LogLine
from vllm_batch.messaging import subjects
from vllm_batch.segments import Result, encode_segment, segment_key

MODELS = ("acme/small", "acme/large", "acme/reviewer")
PROJECTS = tuple(ProjectId(name) for name in ("default", "search", "research", "nightly"))
ENDPOINT = "/v1/chat/completions"
CHUNK_REQUESTS = 256
LARGE_CHUNKS = 10_000
LARGE_CHUNK_REQUESTS = 10
HISTORY = timedelta(days=7)
FAILED_EVERY = 50
LIVE_EVENTS_PER_SECOND = 100
HEARTBEAT_SECONDS = 2.0
GPU_BYTES = 80 * 1024**3


class History:
    """What is in the log: ``batches`` with ``requests`` together, the newest of them running."""

    def __init__(self, batches: int, requests: int, workers: int) -> None:
        self.large = ids.new_job_id()
        self.batches = batches
        self.small_requests = (requests - LARGE_CHUNKS * LARGE_CHUNK_REQUESTS) // (batches - 1)
        self.workers = [
            (WorkerId(ids.new("worker_")), f"gpu-{number:02}") for number in range(1, workers + 1)
        ]
        self._live_chunk = itertools.count(LARGE_CHUNKS // 2)

    def events(self, now: datetime) -> Iterator[tuple[datetime, Event]]:
        """Yield everything with its time, in order."""
        start = now - HISTORY
        for worker_id, name in self.workers:
            yield start, WorkerStarted(
                worker_id=worker_id, name=name, host=f"node-{name}", pid=4711, engine="vllm",
                version="1.0",
            )  # fmt: skip
            yield start, WorkerReady(worker_id=worker_id, models=[*MODELS], in_flight_max=256)
        for number in range(self.batches - 1):
            time = start + HISTORY * number / self.batches
            yield from ((time, event) for event in self._ended_batch(number))
        yield from ((now, event) for event in self._running_batch())

    def live(self) -> Iterator[Event]:
        """Yield what goes on to happen in the running batch, for ever."""
        while (chunk := next(self._live_chunk)) < LARGE_CHUNKS:
            yield self._leased(self.large, chunk)
            yield self._completed(self.large, chunk, LARGE_CHUNK_REQUESTS, segment=None)

    def _ended_batch(self, number: int) -> Iterator[Event]:
        job, model = ids.new_job_id(), MODELS[number % len(MODELS)]
        total, rest = self.small_requests, self.small_requests
        yield from self._submitted(job, number)
        counts = []
        while rest:
            counts.append(min(CHUNK_REQUESTS, rest))
            rest -= counts[-1]
        yield from (_planned(job, chunk, count, model) for chunk, count in enumerate(counts))
        yield JobStarted(job_id=job, total=total, chunks=len(counts), model=model)
        for chunk, count in enumerate(counts):
            yield self._leased(job, chunk)
            for done in range(64, count, 64):
                yield self._progressed(job, chunk, done)
            yield self._completed(job, chunk, count, segment=None)
        failed = sum(count // FAILED_EVERY for count in counts)
        yield JobFinalizing(job_id=job, outcome="completed")
        yield JobCompleted(
            job_id=job, total=total, completed=total - failed, failed=failed, usage=_usage(total)
        )

    def _running_batch(self) -> Iterator[Event]:
        job, model = self.large, MODELS[1]
        yield from self._submitted(job, self.batches)
        for chunk in range(LARGE_CHUNKS):
            yield _planned(job, chunk, LARGE_CHUNK_REQUESTS, model)
        total = LARGE_CHUNKS * LARGE_CHUNK_REQUESTS
        yield JobStarted(job_id=job, total=total, chunks=LARGE_CHUNKS, model=model)
        for chunk in range(LARGE_CHUNKS // 2):
            yield self._leased(job, chunk)
            yield self._completed(
                job, chunk, LARGE_CHUNK_REQUESTS,
                segment=Segment(segment_key(job, chunk, 1, 0), 1000, LARGE_CHUNK_REQUESTS, 0),
            )  # fmt: skip

    def _submitted(self, job: JobId, number: int) -> Iterator[Event]:
        project, file = PROJECTS[number % len(PROJECTS)], FileId(f"file-{job}")
        yield FileUploaded(
            file_id=file, project=project, filename=f"work-{number}.jsonl", purpose="batch",
            bytes=1_000_000, sha256="0" * 64, lines=1000, blob=f"files/{file}",
        )  # fmt: skip
        yield JobSubmitted(
            job_id=job, project=project, input_file_id=file, endpoint=ENDPOINT,
            completion_window="24h", expires_at=2_000_000_000,
            metadata={"run": str(number), "team": project},
        )  # fmt: skip

    def _worker(self, chunk: int) -> WorkerId:
        return self.workers[chunk % len(self.workers)][0]

    def _leased(self, job: JobId, chunk: int) -> Event:
        return ChunkLeased(job_id=job, chunk=chunk, epoch=1, worker_id=self._worker(chunk))

    def _progressed(self, job: JobId, chunk: int, done: int) -> Event:
        return ChunkProgressed(
            job_id=job, chunk=chunk, epoch=1, worker_id=self._worker(chunk), completed=done,
            failed=0, usage=_usage(done), segment=Segment(f"gone/{job}/{chunk}", 1000, 64, 0),
        )  # fmt: skip

    def _completed(self, job: JobId, chunk: int, count: int, segment: Segment | None) -> Event:
        failed = count // FAILED_EVERY
        return ChunkCompleted(
            job_id=job, chunk=chunk, epoch=1, worker_id=self._worker(chunk),
            completed=count - failed, failed=failed, usage=_usage(count), segment=segment,
        )  # fmt: skip


async def write(store: JetStreamEventStore, history: History, now: datetime) -> int:
    """Put the history into the log; return how many events it has."""
    pending, count = history.events(now), 0
    while batch := list(islice(pending, PUBLISHED_AT_ONCE)):
        for time, event in batch[:-1]:
            await store.connection.client.publish(subjects.of_event(event), _payload(event, time))
        time, event = batch[-1]
        await store.js.publish(subjects.of_event(event), _payload(event, time))
        count += len(batch)
    return count


async def write_segments(blobs: BlobStore, history: History, chunks: int) -> None:
    """Put the newest segments of the running batch into the blob store."""
    last = LARGE_CHUNKS // 2
    for chunk in range(last - chunks, last):
        results = [
            Result(index, False, _line(chunk, index)) for index in range(LARGE_CHUNK_REQUESTS)
        ]
        key = segment_key(history.large, chunk, 1, 0)
        await blobs.put(key, encode_segment(results))


async def write_log_lines(store: JetStreamEventStore, history: History, lines: int) -> None:
    """Publish ``lines`` log lines of all workers."""
    client, chance = store.connection.client, random.Random(1)
    for number in range(lines):
        line = LogLine(
            time=datetime.now(UTC), source="engine",
            level=chance.choices(("info", "debug", "warning", "error"), (80, 15, 4, 1))[0],
            message=f"line {number}: running 24 requests, 1,234 tokens/s, KV cache 61 %",
        )  # fmt: skip
        worker_id = history.workers[number % len(history.workers)][0]
        publish = store.js.publish if number % PUBLISHED_AT_ONCE == 0 else client.publish
        await publish(subjects.log(worker_id), msgspec.json.encode(line))
    await store.js.publish(subjects.log(history.workers[0][0]), msgspec.json.encode(line))


async def beat(store: JetStreamEventStore, history: History) -> None:
    """Let every worker's heart beat, for ever."""
    chance = random.Random(2)
    while True:
        for worker_id, name in history.workers:
            beat = _heartbeat(worker_id, name, chance)
            subject = subjects.heartbeat(worker_id)
            await store.connection.client.publish(subject, msgspec.json.encode(beat))
            await asyncio.sleep(HEARTBEAT_SECONDS / len(history.workers))


async def go_on(store: JetStreamEventStore, history: History) -> None:
    """Let the running batch go on, LIVE_EVENTS_PER_SECOND events a second."""
    for event in history.live():
        payload = _payload(event, datetime.now(UTC))
        await store.connection.client.publish(subjects.of_event(event), payload)
        await asyncio.sleep(1 / LIVE_EVENTS_PER_SECOND)


def _payload(event: Event, time: datetime) -> bytes:
    return encode(event, event_id=ids.new_event_id(), source="benchmark", time=time)


def _planned(job: JobId, chunk: int, count: int, model: str) -> Event:
    return ChunkPlanned(
        job_id=job, chunk=chunk, blob=f"files/{job}", offset=chunk * 1000, length=1000,
        first_line=chunk * count + 1, count=count, endpoint=ENDPOINT, model=model,
    )  # fmt: skip


def _usage(requests: int) -> Usage:
    return Usage(requests * 120, requests * 40, requests * 60, 0)


def _line(chunk: int, index: int) -> bytes:
    message = {"role": "assistant", "content": f"Answer {index} of chunk {chunk}, in some words."}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    line = {
        "id": f"batch_req_{chunk}_{index}", "custom_id": f"request-{chunk}-{index}",
        "response": {"status_code": 200, "request_id": "r", "body": body}, "error": None,
    }  # fmt: skip
    return json.dumps(line).encode()


def _heartbeat(worker_id: WorkerId, name: str, chance: random.Random) -> Heartbeat:
    gpus = [
        GpuMetrics(
            index=index, name="NVIDIA H100 80GB HBM3", memory_total_bytes=GPU_BYTES,
            memory_used_bytes=int(GPU_BYTES * chance.uniform(0.85, 0.92)),
            utilization_percent=chance.randint(80, 99), temperature_celsius=64, power_watts=590.0,
        )
        for index in range(2)
    ]  # fmt: skip
    return Heartbeat(
        worker_id=worker_id, name=name, host=f"node-{name}", pid=4711, time=datetime.now(UTC),
        state="ready", engine="vllm", models=[*MODELS], in_flight=chance.randint(180, 256),
        in_flight_max=256, leases=4, requests_per_second=chance.uniform(20, 30),
        output_tokens_per_second=chance.uniform(1800, 2400), max_num_seqs=256, log_errors=2,
        log_warnings=11, gpus=gpus,
    )  # fmt: skip
