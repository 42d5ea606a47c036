"""An annotation's regions, from its event or, where they are many, from the blob store."""

from __future__ import annotations

from typing import Any

import msgspec

from vllm_batch.aggregates.annotation import Written
from vllm_batch.blobs import BlobStore


async def of(written: Written, blobs: BlobStore) -> list[dict[str, Any]]:
    """Return the regions.

    Raises:
        BlobError: a long list cannot be read.
    """
    if written.result_blob is None:
        return written.result
    result: list[dict[str, Any]] = msgspec.json.decode(await blobs.get(written.result_blob))
    return result
