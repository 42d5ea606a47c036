"""Result segments: what a worker hands in at one checkpoint, and the finalizer puts in order.

Layout: a 4-byte big-endian header length, a msgpack header with (indexes, failed flags, line
lengths), then the finished result lines one after the other. Nothing in the lines has to be parsed
to merge them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from vllm_batch.errors import BlobError
from vllm_batch.ids import JobId

_LENGTH = struct.Struct(">I")


class Result(msgspec.Struct, frozen=True, gc=False):
    """One request's result: its index in the chunk, whether it belongs in the error file, its
    line."""

    index: int
    failed: bool
    line: bytes


class _Header(msgspec.Struct, frozen=True, array_like=True):
    indexes: list[int]
    failed: list[bool]
    lengths: list[int]


def segment_key(job_id: JobId, chunk: int, epoch: int, number: int) -> str:
    """Return the blob key of the ``number``-th segment that was written under ``epoch``."""
    return f"{segments_prefix(job_id)}/{chunk}/{epoch}-{number}"


def segments_prefix(job_id: JobId) -> str:
    """Return the prefix of all segments of a job."""
    return f"segments/{job_id}"


def encode_segment(results: Iterable[Result]) -> bytes:
    """Return the segment's bytes."""
    rows = list(results)
    header = msgspec.msgpack.encode(
        _Header(
            [row.index for row in rows],
            [row.failed for row in rows],
            [len(row.line) for row in rows],
        )
    )
    return b"".join((_LENGTH.pack(len(header)), header, *(row.line for row in rows)))


def decode_segment(data: bytes) -> Iterator[Result]:
    """Yield the results of a segment in the order they were handed in.

    Raises:
        BlobError: the bytes are not a whole segment.
    """
    try:
        (size,) = _LENGTH.unpack_from(data)
        header = msgspec.msgpack.decode(data[4 : 4 + size], type=_Header)
    except (struct.error, msgspec.DecodeError) as error:
        raise BlobError(f"not a segment: {error}") from error
    position = 4 + size
    if position + sum(header.lengths) != len(data):
        raise BlobError("the segment is cut short")
    for index, failed, length in zip(header.indexes, header.failed, header.lengths, strict=True):
        yield Result(index, failed, data[position : position + length])
        position += length
