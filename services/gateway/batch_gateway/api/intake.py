"""Taking bytes in: counted, hashed and bounded on their way from the client to the blob store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from batch_gateway.api.errors import too_large
from vllm_batch.blobs import STREAM_BYTES, BlobStore
from vllm_batch.errors import StorageFull


class Intake:
    """One blob that is being received. ``bytes``, ``lines`` and the hashes grow with it.

    ``bytes_max`` may be lowered on the way, when it turns out what the bytes are for.
    """

    def __init__(
        self,
        blobs: BlobStore,
        key: str,
        *,
        bytes_max: int,
        free_bytes_min: int,
        with_md5: bool = False,
    ) -> None:
        self.key = key
        self.bytes = 0
        self.bytes_max = bytes_max
        self._blobs = blobs
        self._free_bytes_min = free_bytes_min
        self._room: int | None = None
        self._newlines = 0
        self._last = b""
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None

    @property
    def lines(self) -> int:
        """Newline-ended lines, and a last one without."""
        return self._newlines + (1 if self._last not in {b"", b"\n"} else 0)

    @property
    def sha256(self) -> str:
        """Hex digest of what came in."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """Hex digest that clients check uploads with; empty unless asked for."""
        return self._md5.hexdigest() if self._md5 else ""

    async def store(self, chunks: AsyncIterator[bytes]) -> None:
        """Store what ``chunks`` yields; whatever goes wrong, nothing of it is left.

        Raises:
            HttpRefusal: 413, there are more than ``bytes_max`` bytes.
            StorageFull: the disk is full, or would soon be.
        """
        free = self._blobs.free_bytes()
        self._room = None if free is None else free - self._free_bytes_min
        await self._blobs.put_stream(self.key, self._measured(chunks))

    async def discard(self) -> None:
        """Delete what was stored, also while this task is being cancelled."""
        await asyncio.shield(self._blobs.delete(self.key))

    def check_size(self) -> None:
        """Refuse what is over the limit as it is now."""
        if self.bytes > self.bytes_max:
            raise too_large("The file", self.bytes_max)

    def _check_room(self, more: int) -> None:
        """Keep the reserve on the disk, with what others write and with what is not written yet."""
        if self._room is not None and self.bytes > self._room:
            raise StorageFull(f"{self.bytes} bytes came in, there was room for {self._room}")
        refuse_without_room(self._blobs, more, self._free_bytes_min)

    async def _measured(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield ``chunks`` in pieces of about STREAM_BYTES: each one costs a switch to Rust."""
        pending: list[bytes] = []
        size = 0
        async for chunk in chunks:
            pending.append(chunk)
            size += len(chunk)
            if size >= STREAM_BYTES:
                yield self._counted(pending)
                pending, size = [], 0
            elif self.bytes + size > self.bytes_max:
                break
        if pending:
            yield self._counted(pending)

    def _counted(self, pending: list[bytes]) -> bytes:
        piece = b"".join(pending)
        self.bytes += len(piece)
        self.check_size()
        self._check_room(len(piece))
        self._sha256.update(piece)
        if self._md5:
            self._md5.update(piece)
        self._newlines += piece.count(b"\n")
        self._last = piece[-1:]
        return piece


def refuse_without_room(blobs: BlobStore, bytes_wanted: int, free_bytes_min: int) -> None:
    """Refuse what would leave less than ``free_bytes_min`` on the disk.

    The event log may live on the same disk: a user's upload must not stop it.

    Raises:
        StorageFull: there is not that much room.
    """
    free = blobs.free_bytes()
    if free is not None and free - bytes_wanted < free_bytes_min:
        raise StorageFull(f"only {free} bytes are free, {free_bytes_min} of them in reserve")
