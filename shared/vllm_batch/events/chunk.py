"""Events of a chunk: a byte range of a batch file, leased and worked on as one."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from vllm_batch.events.base import Event, Usage
from vllm_batch.ids import JobId, WorkerId


class _ChunkEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("job_id", "chunk")

    job_id: JobId
    chunk: int


class Segment(msgspec.Struct, frozen=True, omit_defaults=True):
    """Results handed in together: a blob that was synced to disk before this was recorded."""

    blob: str
    bytes: int
    completed: int
    failed: int


class Cut(msgspec.Struct, frozen=True):
    """The limits a whole file was cut into chunks by."""

    requests_max: int
    bytes_max: int


class ChunkPlanned(_ChunkEvent, frozen=True, kw_only=True):
    """``count`` requests in bytes [offset, offset + length) of ``blob``; lines count from 1.

    ``cut`` is on a job's chunk 0, which is recorded first: whoever goes on with the planning after
    a crash keeps to these limits, so that every request is in exactly one chunk.
    """

    TYPE: ClassVar[str] = "chunk.planned"

    blob: str
    offset: int
    length: int
    first_line: int
    count: int
    endpoint: str
    model: str
    cut: Cut | None = None


class ChunkLeased(_ChunkEvent, frozen=True, kw_only=True):
    """``worker_id`` owns the chunk under ``epoch`` (1, 2, …); earlier epochs are over."""

    TYPE: ClassVar[str] = "chunk.leased"

    epoch: int
    worker_id: WorkerId


class _ChunkRecorded(_ChunkEvent, frozen=True, kw_only=True):
    """``completed``, ``failed`` and ``usage`` are totals of the chunk over all epochs, not
    increments."""

    epoch: int
    worker_id: WorkerId
    completed: int
    failed: int
    usage: Usage


class ChunkProgressed(_ChunkRecorded, frozen=True, kw_only=True):
    """Results were checkpointed."""

    TYPE: ClassVar[str] = "chunk.progressed"

    segment: Segment


class ChunkCompleted(_ChunkRecorded, frozen=True, kw_only=True):
    """Every request of the chunk has a result. ``segment`` is the last one, if anything was
    left."""

    TYPE: ClassVar[str] = "chunk.completed"

    segment: Segment | None = None


class ChunkReleased(_ChunkEvent, frozen=True, kw_only=True):
    """The lease of ``epoch`` is over before the end; the chunk may be leased again."""

    TYPE: ClassVar[str] = "chunk.released"

    epoch: int
    reason: Literal["drained", "worker_lost", "engine_failed", "cancelled", "expired", "error"]


class ChunkClosed(_ChunkEvent, frozen=True, kw_only=True):
    """No more work on this chunk: requests without a result never ran (``stuck``: were leased
    again and again without one, and count as failed)."""

    TYPE: ClassVar[str] = "chunk.closed"

    reason: Literal["cancelled", "expired", "stuck"]


ChunkEvent = (
    ChunkPlanned | ChunkLeased | ChunkProgressed | ChunkCompleted | ChunkReleased | ChunkClosed
)
