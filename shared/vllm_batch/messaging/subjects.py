"""The only place that builds subjects. They hold ids and fixed words, never a user's text."""

from __future__ import annotations

from vllm_batch.events.base import Event
from vllm_batch.ids import JobId, ModelKey, WorkerId

ALL_JOBS = "job.>"
ALL_CHUNKS = "chunk.>"
ALL_FILES = "file.>"
ALL_API_KEYS = "apikey.>"
ALL_UPLOADS = "upload.>"
ALL_WORKERS = "worker.>"
ALL_HEARTBEATS = "worker.heartbeat.*"
ALL_LOGS = "worker.log.*"
CANCEL_REQUESTS = "job.cancel_requested.*"
CLOSED_WINDOWS = "job.window_closed.*"
RELEASED_CHUNKS = "chunk.released.*.*"
CLOSED_CHUNKS = "chunk.closed.*.*"


def of_event(event: Event) -> str:
    """Return ``<noun>.<verb>.<id>[.<sub id>]``."""
    return ".".join((event.TYPE, *event.aggregate_id()))


def of_aggregate(event: Event) -> str:
    """Return the wildcard over all event types of the event's aggregate."""
    return aggregate(event.TYPE.partition(".")[0], *event.aggregate_id())


def aggregate(noun: str, *tokens: str) -> str:
    """Return the wildcard over all event types of one aggregate, e.g. ``chunk.*.<job>.<n>``."""
    return ".".join((noun, "*", *tokens))


def job(job_id: JobId) -> str:
    """Return the wildcard over a job's own events."""
    return aggregate("job", job_id)


def chunk(job_id: JobId, number: int) -> str:
    """Return the wildcard over one chunk's events."""
    return aggregate("chunk", job_id, str(number))


def chunks_of(job_id: JobId) -> str:
    """Return the wildcard over the events of all chunks of a job."""
    return aggregate("chunk", job_id, "*")


def every(cls: type[Event]) -> str:
    """Return the wildcard over all events of one type, e.g. ``job.submitted.>``."""
    return f"{cls.TYPE}.>"


def work(key: ModelKey) -> str:
    """Return the subject of hints for a model's workers."""
    return f"work.{key}"


def heartbeat(worker_id: WorkerId) -> str:
    """Return the subject of a worker's heartbeats."""
    return f"worker.heartbeat.{worker_id}"


def log(worker_id: WorkerId) -> str:
    """Return the subject of a worker's log lines."""
    return f"worker.log.{worker_id}"


def control(worker: str) -> str:
    """Return the subject on which one worker takes commands: requests that no stream keeps.

    ``worker`` is a worker's id or an `ids.worker_key`.
    """
    return f"control.worker.{worker}"
