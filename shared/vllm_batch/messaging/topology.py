"""Streams and consumers as data, and bringing a server to them.

EVENTS is the truth: limits retention, no age, nothing deleted, full means refuse. WORK holds hints
only. TELEMETRY is aged and bounded. ``worker.heartbeat`` and ``worker.log`` belong to TELEMETRY, so
EVENTS names a worker's lifecycle events one by one.
"""

from __future__ import annotations

from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError

from vllm_batch.events.registry import EVENT_TYPES
from vllm_batch.ids import ModelKey
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

EVENTS = "EVENTS"
WORK = "WORK"
TELEMETRY = "TELEMETRY"

DEDUPLICATION_SECONDS = 120.0
HINT_ACK_WAIT_SECONDS = 10.0
_NAME_IN_USE = 10058


def event_subjects() -> list[str]:
    """Return what EVENTS listens to: whole nouns, but single verbs of ``worker``."""
    nouns = {name.partition(".")[0] for name in EVENT_TYPES} - {"worker"}
    verbs = [f"{name}.*" for name in EVENT_TYPES if name.startswith("worker.")]
    return sorted([f"{noun}.>" for noun in nouns] + verbs)


def streams(settings: Settings) -> list[StreamConfig]:
    """Return every stream the system needs."""
    events = StreamConfig(
        name=EVENTS,
        description="every fact, in one order",
        subjects=event_subjects(),
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        deny_delete=True,
        deny_purge=True,
        allow_direct=True,
        duplicate_window=DEDUPLICATION_SECONDS,
        num_replicas=settings.events_replicas,
    )
    work = StreamConfig(
        name=WORK,
        description="hints: this chunk may be leased",
        subjects=["work.*"],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        num_replicas=settings.events_replicas,
    )
    telemetry = StreamConfig(
        name=TELEMETRY,
        description="heartbeats and logs, aged",
        subjects=[subjects.ALL_HEARTBEATS, subjects.ALL_LOGS],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=settings.telemetry_age_max_seconds,
        max_bytes=settings.telemetry_bytes_max,
        allow_direct=True,
        num_replicas=settings.events_replicas,
    )
    return [events, work, telemetry]


def work_consumer(key: ModelKey) -> ConsumerConfig:
    """Return the durable consumer that all workers of a model share."""
    return ConsumerConfig(
        durable_name=f"work-{key}",
        filter_subject=subjects.work(key),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=HINT_ACK_WAIT_SECONDS,
        max_ack_pending=10_000,
    )


async def ensure_streams(js: JetStreamContext, settings: Settings) -> None:
    """Create the streams that are missing and update those that differ. Safe to run anywhere, any
    time."""
    for wanted in streams(settings):
        try:
            existing = (await js.stream_info(str(wanted.name))).config
        except NotFoundError:
            try:
                await js.add_stream(wanted)
            except BadRequestError as error:
                if error.err_code != _NAME_IN_USE:  # another process was faster
                    raise
            continue
        change = change_of(existing, wanted)
        if change is not None:
            await js.update_stream(change)


def change_of(existing: StreamConfig, wanted: StreamConfig) -> StreamConfig | None:
    """Return what a stream that exists has to become, None where it can stay as it is.

    Never fewer copies and never fewer subjects: a process that knows less, such as a command or a
    worker elsewhere without ``events_replicas``, or one of the release before, takes nothing away.
    """
    subjects = {*(existing.subjects or ()), *(wanted.subjects or ())}
    replicas = max(existing.num_replicas or 1, wanted.num_replicas or 1)
    if subjects == set(existing.subjects or ()) and replicas == existing.num_replicas:
        return None
    return wanted.evolve(subjects=sorted(subjects), num_replicas=replicas)


async def ensure_work_consumer(js: JetStreamContext, key: ModelKey) -> str:
    """Create the model's durable consumer where it is missing; return its name."""
    config = work_consumer(key)
    try:
        await js.add_consumer(WORK, config)
    except APIError as error:
        if error.err_code not in {10013, 10105, 10148}:  # exists already
            raise
    return str(config.durable_name)
