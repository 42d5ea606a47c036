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
ALL_MODELS = "model.>"
ALL_ANNOTATIONS = "annotation.>"
ALL_LABELING = "labeling.>"
ALL_TRAINING = "training.>"
ALL_WEBHOOKS = "webhook.>"
ALL_PROJECTS = "project.>"
ALL_ADMIN = "admin.>"
ALL_TOOLS = "tool.>"
ALL_USAGE = "usage.>"
ALL_WORK = "work.*"
ALL_INFERENCE = "inference.*"
ALL_ONLINE_WORKERS = "online.worker.*"
ALL_ONLINE_GATEWAYS = "online.gateway.*"
ALL_ONLINE_REPLIES = "online.nobody.*.*"
ALL_HEARTBEATS = "worker.heartbeat.*"
ALL_LOGS = "worker.log.*"
LABELING_CONTROL = "control.labelstudio"
RATES_USED = "rates.used"
CANCEL_REQUESTS = "job.cancel_requested.*"
CLOSED_WINDOWS = "job.window_closed.*"
RELEASED_CHUNKS = "chunk.released.*.*"
CLOSED_CHUNKS = "chunk.closed.*.*"


def of_event(event: Event) -> str:
    """Return ``<noun>.<verb>.<id>[.<sub id>]``."""
    return ".".join((event.TYPE, *event.aggregate_id()))


def of_envelope(event_type: str, subject: str) -> str:
    """Return the subject of a recorded event of any release, from its CloudEvents attributes."""
    return ".".join((event_type, *subject.split("/")))


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


def inference(key: ModelKey) -> str:
    """Return the subject of online requests to a model's workers: no stream keeps them."""
    return f"inference.{key}"


def online_worker(worker_id: WorkerId) -> str:
    """Return the inbox of a worker for what belongs to online requests it has, or may take."""
    return f"online.worker.{worker_id}"


def online_gateway(gateway: str) -> str:
    """Return the inbox of a gateway for the answers to its online requests."""
    return f"online.gateway.{gateway}"


def online_reply(gateway: str, request_id: str) -> str:
    """Return where NATS says that nobody takes a request: it names it by nothing but this."""
    return f"online.nobody.{gateway}.{request_id}"


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
