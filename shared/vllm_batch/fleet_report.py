"""What people are shown of the workers: one record each, and how much work waits for each model.

Reads the event log and telemetry; writes nothing. The command line and the admin API show the same.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from nats.aio.client import Client

from vllm_batch import fleet
from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.aggregates.job import Job, JobStatus
from vllm_batch.event_store import EventStore
from vllm_batch.events import ChunkPlanned, Recorded
from vllm_batch.events.chunk import ChunkEvent
from vllm_batch.events.job import JobEvent, JobRetired
from vllm_batch.fleet import Name, WorkerView
from vllm_batch.heartbeats import GpuMetrics, Heartbeat
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.messaging import subjects, telemetry


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker now. ``state``: starting, ready, draining or failed by its heartbeat; stopped, lost
    or crash-looping by the log. What only a heartbeat tells is null without one."""

    name: str
    worker_id: WorkerId
    state: str
    reason: str | None
    host: str
    pid: int
    engine: str
    version: str
    models: list[str]
    started_at: datetime
    ended_at: datetime | None
    deaths: int
    crash_looping: bool
    heartbeat_age_seconds: float | None = None
    in_flight: int | None = None
    in_flight_max: int | None = None
    leases: int | None = None
    requests_per_second: float | None = None
    output_tokens_per_second: float | None = None
    engine_pid: int | None = None
    engine_restarts: int | None = None
    engine_progress_age_seconds: float | None = None
    rss_bytes: int | None = None
    log_errors: int | None = None
    log_warnings: int | None = None
    gpus: list[GpuMetrics] = []


class QueueReport(msgspec.Struct, frozen=True, kw_only=True):
    """Open work of one model: requests without a result, and chunks by what they wait for."""

    model: str
    batches: int
    requests: int
    chunks_ready: int
    chunks_leased: int


async def workers(
    store: EventStore, client: Client, now: datetime, *, gone: bool = False
) -> list[WorkerReport]:
    """Return the newest process of every worker name; ``gone``: those that left on purpose too.

    Raises:
        EventStoreUnavailable: the log or telemetry does not answer.
    """
    known = await fleet.load(store)
    beats = await telemetry.last_heartbeats(client)
    return [
        _report(name, beats.get(name.newest.worker_id), now)
        for name in sorted(known.names.values(), key=lambda name: name.name)
        if gone or name.crash_looping or not _left(name.newest)
    ]


def _left(worker: WorkerView) -> bool:
    return worker.state == "stopped" and not worker.missed


def _state(name: Name) -> str:
    if name.crash_looping and name.newest.ended_at is not None:
        return "crash-looping"
    return "starting" if name.newest.state == "started" else name.newest.state


def _report(name: Name, beat: tuple[Heartbeat, datetime] | None, now: datetime) -> WorkerReport:
    worker = name.newest
    report = WorkerReport(
        name=name.name, worker_id=worker.worker_id, state=_state(name), reason=worker.reason,
        host=worker.host, pid=worker.pid, engine=worker.engine, version=worker.version,
        models=worker.models, started_at=worker.started_at, ended_at=worker.ended_at,
        deaths=len(name.deaths), crash_looping=name.crash_looping,
    )  # fmt: skip
    if beat is None:
        return report
    heard, time = beat
    age = round(max(0.0, (now - time).total_seconds()), 3)
    if worker.ended_at is not None:
        return msgspec.structs.replace(report, heartbeat_age_seconds=age)
    return msgspec.structs.replace(
        report,
        state=heard.state,
        heartbeat_age_seconds=age,
        **{
            field: getattr(heard, field)
            for field in (
                "in_flight", "in_flight_max", "leases", "requests_per_second",
                "output_tokens_per_second", "engine_pid", "engine_restarts",
                "engine_progress_age_seconds", "rss_bytes", "log_errors", "log_warnings", "gpus",
            )
        },
    )  # fmt: skip


async def queues(store: EventStore) -> list[QueueReport]:
    """Return the open work of every model that has some.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    jobs: dict[JobId, Job] = {}
    async for batch in store.read(subjects.ALL_JOBS):
        for recorded in batch:
            event = recorded.event
            if isinstance(event, JobEvent) and not isinstance(event, JobRetired):
                jobs[event.job_id] = job_rules.evolve(jobs.get(event.job_id), recorded)
                if jobs[event.job_id].terminal:
                    del jobs[event.job_id]
    found: dict[str, QueueReport] = {}
    for job_id, job in jobs.items():
        if job.status is JobStatus.RUNNING and job.started is not None:
            for model, chunks in (await _open_chunks(store, job_id)).items():
                found[model] = _add(found.get(model), model, chunks)
    return sorted(found.values(), key=lambda queue: queue.model)


async def _open_chunks(store: EventStore, job_id: JobId) -> dict[str, list[Chunk]]:
    """Return a job's chunks that have not ended, by their model."""
    chunks: dict[int, Chunk] = {}
    async for batch in store.read(subjects.chunks_of(job_id)):
        for recorded in batch:
            _fold(chunks, recorded)
    found: dict[str, list[Chunk]] = {}
    for chunk in chunks.values():
        if not chunk.terminal:
            found.setdefault(chunk.planned.model, []).append(chunk)
    return found


def _fold(chunks: dict[int, Chunk], recorded: Recorded) -> None:
    event = recorded.event
    if isinstance(event, ChunkEvent) and (isinstance(event, ChunkPlanned) or event.chunk in chunks):
        chunks[event.chunk] = chunk_rules.evolve(chunks.get(event.chunk), recorded)


def _add(before: QueueReport | None, model: str, chunks: list[Chunk]) -> QueueReport:
    start = before or QueueReport(
        model=model, batches=0, requests=0, chunks_ready=0, chunks_leased=0
    )
    leased = sum(chunk.status is ChunkStatus.LEASED for chunk in chunks)
    return QueueReport(
        model=model,
        batches=start.batches + 1,
        requests=start.requests + sum(chunk.remaining for chunk in chunks),
        chunks_ready=start.chunks_ready + len(chunks) - leased,
        chunks_leased=start.chunks_leased + leased,
    )
