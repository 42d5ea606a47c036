"""A file's requests in another order: a copy of them, and the way back to the order of the file.

Owns the blobs ``plans/<job>/<digest>.jsonl`` (the requests, one after the other) and ``….order``.
Both follow from the order alone, so two planners with the same order write the same blobs, and two
with different orders do not overwrite each other's. Chunk 0 says which one counts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from batch_gateway.orchestrator.request_index import RequestIndex
from batch_gateway.orchestrator.spool import Spool
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobError, BlobMissing
from vllm_batch.ids import JobId

COPIED_AT_ONCE_BYTES = 1024 * 1024
_PART_REQUESTS_MAX = 4096


class Arrangement(msgspec.Struct, frozen=True):
    """``order[p]``: which request of the file (from 0) is the copy's ``p``-th. ``counts``: how many
    requests each chunk has; kept, so that whoever goes on with a plan need not know how its author
    came to it."""

    order: list[int]
    counts: list[int]


def prefix_of(job_id: JobId) -> str:
    """Return the prefix of all blobs that a job's plan may have."""
    return f"plans/{job_id}"


def requests_key(key: str) -> str:
    """Return the blob key of the copy."""
    return f"{key}.jsonl"


async def write(
    blobs: BlobStore,
    job_id: JobId,
    arrangement: Arrangement,
    *,
    source: str,
    index: RequestIndex,
    spool_directory: Path,
) -> str:
    """Write both blobs; return the key that `read` takes. ``source``: the file that ``index`` is
    of.

    Raises:
        BlobMissing: the file is gone.
        BlobError: try again.
    """
    encoded = msgspec.msgpack.encode(arrangement)
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    key = f"{prefix_of(job_id)}/{digest}"
    with Spool(spool_directory) as spool:
        async for piece in blobs.stream(source):
            await asyncio.to_thread(spool.add, piece)
        await blobs.put_stream(requests_key(key), _requests(spool, index, arrangement.order))
    await blobs.put(f"{key}.order", encoded)
    return key


async def read(blobs: BlobStore, key: str) -> Arrangement:
    """Return what `write` wrote.

    Raises:
        BlobError: it cannot be read; it is not deleted before its job has ended.
    """
    try:
        encoded = await blobs.get(f"{key}.order")
    except BlobMissing as error:
        raise BlobError(f"the order of the requests is gone: {error}") from error
    return msgspec.msgpack.decode(encoded, type=Arrangement)


async def _requests(
    spool: Spool, index: RequestIndex, order: Sequence[int]
) -> AsyncIterator[bytes]:
    """Yield the requests in ``order``, each with one newline, in pieces of a bounded size."""
    wanted: list[tuple[int, int]] = []
    size = 0
    for at in order:
        length = index.ends[at] - index.starts[at] - 1
        wanted.append((index.starts[at], length))
        size += length
        if size >= COPIED_AT_ONCE_BYTES or len(wanted) == _PART_REQUESTS_MAX:
            yield await asyncio.to_thread(_lines, spool, wanted)
            wanted, size = [], 0
    if wanted:
        yield await asyncio.to_thread(_lines, spool, wanted)


def _lines(spool: Spool, wanted: list[tuple[int, int]]) -> bytes:
    return b"".join(spool.read(start, length) + b"\n" for start, length in wanted)
