"""Events of a chunk: a byte range of a batch file, leased and worked on as one."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from vllm_batch.events.base import Effort, Event, Usage
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


class Cut(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a whole file was cut into chunks.

    ``arrangement``: the key of the blobs that have the requests in another order and tell which;
    None where chunks are ranges of the input file. ``aliases``: what the names that requests ask
    for meant at that time.
    """

    requests_max: int
    bytes_max: int
    arrangement: str | None = None
    aliases: dict[str, str] = msgspec.field(default_factory=dict)


class Prefix(msgspec.Struct, frozen=True):
    """The first ``bytes`` bytes of a prompt, as a hash: the same in every batch."""

    bytes: int
    hash: str


class ChunkPlanned(_ChunkEvent, frozen=True, kw_only=True):
    """``count`` requests for ``model`` in bytes [offset, offset + length) of ``blob``, which is the
    input file or a copy of it in another order; ``first_line`` is the first one's line in the input
    file, from 1.

    ``cut`` is on a job's chunk 0, which is recorded first: whoever goes on with the planning after
    a crash keeps to it, so that every request is in exactly one chunk. ``alias``: the name that
    the requests ask for, where it is not the model's. ``prefix``: what all their prompts begin
    with.
    """

    TYPE: ClassVar[str] = "chunk.planned"
    VERSION: ClassVar[int] = 2

    blob: str
    offset: int
    length: int
    first_line: int
    count: int
    endpoint: str
    model: str
    cut: Cut | None = None
    alias: str | None = None
    prefix: Prefix | None = None


class ChunkLeased(_ChunkEvent, frozen=True, kw_only=True):
    """``worker_id`` owns the chunk under ``epoch`` (1, 2, …); earlier epochs are over."""

    TYPE: ClassVar[str] = "chunk.leased"

    epoch: int
    worker_id: WorkerId


class _ChunkRecorded(_ChunkEvent, frozen=True, kw_only=True):
    """``completed``, ``failed``, ``usage`` and ``effort`` are totals of the chunk over all epochs,
    not increments."""

    epoch: int
    worker_id: WorkerId
    completed: int
    failed: int
    usage: Usage


class ChunkProgressed(_ChunkRecorded, frozen=True, kw_only=True):
    """Results were checkpointed."""

    TYPE: ClassVar[str] = "chunk.progressed"
    VERSION: ClassVar[int] = 2

    segment: Segment
    effort: Effort = Effort()


class ChunkCompleted(_ChunkRecorded, frozen=True, kw_only=True):
    """Every request of the chunk has a result. ``segment`` is the last one, if anything was
    left."""

    TYPE: ClassVar[str] = "chunk.completed"
    VERSION: ClassVar[int] = 2

    segment: Segment | None = None
    effort: Effort = Effort()


class ChunkReleased(_ChunkEvent, frozen=True, kw_only=True):
    """The lease of ``epoch`` is over before the end; the chunk may be leased again.

    ``effort``: the chunk's total with what was aborted; None where whoever took the lease away does
    not know.
    """

    TYPE: ClassVar[str] = "chunk.released"
    VERSION: ClassVar[int] = 2

    epoch: int
    reason: Literal["drained", "worker_lost", "engine_failed", "cancelled", "expired", "error"]
    effort: Effort | None = None


class ChunkClosed(_ChunkEvent, frozen=True, kw_only=True):
    """No more work on this chunk: requests without a result never ran (``stuck``: were leased
    again and again without one, and count as failed)."""

    TYPE: ClassVar[str] = "chunk.closed"

    reason: Literal["cancelled", "expired", "stuck"]


ChunkEvent = (
    ChunkPlanned | ChunkLeased | ChunkProgressed | ChunkCompleted | ChunkReleased | ChunkClosed
)
