"""What is not an event: files, upload parts and result segments, in a blob store.

A thin port over obstore: ``file://`` by default, ``s3://`` ``gs://`` ``az://`` when workers live on
other machines. Keys are made of our ids and fixed words only: ``files/<file>``,
``uploads/<upload>/<part>``, ``segments/<job>/<chunk>/<epoch>-<n>``, ``plans/<job>/<digest>``. A put
is atomic: the whole blob or nothing. On a local disk it is also synced before it returns, because
an event may only point to what survives a power cut.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from vllm_batch.errors import BlobError, BlobMissing, StorageFull

STREAM_BYTES = 1024 * 1024
_FULL = ("no space left", "storagefull", "quotaexceeded", "disk quota")


class DiskUsage(NamedTuple):
    """Bytes of a file system: all there are, and those that are free."""

    total: int
    free: int


class BlobStore:
    """Put, get, stream, list and delete blobs. Every method raises `BlobError` or a child of it."""

    def __init__(self, store: ObjectStore, root: Path | None) -> None:
        self._store = store
        self._root = root

    async def put(self, key: str, data: bytes) -> None:
        """Store ``data`` under ``key``, replacing what was there."""
        await self._guard(key, obstore.put_async(self._store, key, data))
        await self._sync(key)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store what ``chunks`` yields in constant memory; if it raises, nothing is left behind."""
        await self._guard(key, obstore.put_async(self._store, key, chunks))
        await self._sync(key)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return ``length`` bytes from ``start``, or the whole rest."""
        if length is not None:
            if length == 0:
                return b""
            return bytes(
                await self._guard(
                    key, obstore.get_range_async(self._store, key, start=start, length=length)
                )
            )
        parts = [part async for part in self.stream(key, start=start)]
        return b"".join(parts)

    async def stream(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes [start, start + length) in pieces of about STREAM_BYTES."""
        options: Any = {}
        if length == 0:
            return
        if length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}
        result = await self._guard(
            key, obstore.get_async(self._store, key, options=options or None)
        )
        stream = result.stream(min_chunk_size=STREAM_BYTES)
        while True:
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                return
            except (BaseError, OSError) as error:
                raise _translated(key, error) from error
            yield bytes(piece)

    async def size(self, key: str) -> int:
        """Return the size of a blob in bytes."""
        meta = await self._guard(key, obstore.head_async(self._store, key))
        return int(meta["size"])

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys below ``prefix`` (whole path segments)."""
        try:
            async for batch in obstore.list(self._store, prefix):
                for meta in batch:
                    yield meta["path"]
        except (BaseError, OSError) as error:
            raise _translated(prefix, error) from error

    async def delete(self, key: str) -> None:
        """Delete a blob; deleting what is not there is no error."""
        try:
            await self._guard(key, obstore.delete_async(self._store, key))
        except BlobMissing:
            return

    async def delete_all(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many blobs that were."""
        keys = [key async for key in self.list(prefix)]
        if keys:
            await self._guard(prefix, obstore.delete_async(self._store, keys))
        if self._root is not None:
            await asyncio.to_thread(shutil.rmtree, self._root / prefix, ignore_errors=True)
        return len(keys)

    def disk_usage(self) -> DiskUsage | None:
        """Return size and free bytes of the local disk; None where the store is not local."""
        if self._root is None:
            return None
        usage = shutil.disk_usage(self._root)
        return DiskUsage(usage.total, usage.free)

    def free_bytes(self) -> int | None:
        """Return the bytes left on a local disk; None where the store has no such bound."""
        return shutil.disk_usage(self._root).free if self._root is not None else None

    async def _sync(self, key: str) -> None:
        if self._root is not None:
            try:
                await asyncio.to_thread(_sync_file, self._root / key)
            except OSError as error:
                raise _translated(key, error) from error

    async def _guard(self, key: str, awaitable: Any) -> Any:
        try:
            return await awaitable
        except (BaseError, OSError) as error:
            raise _translated(key, error) from error


def _sync_file(path: Path) -> None:
    for name in (path, path.parent):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _translated(key: str, error: Exception) -> BlobError:
    text = str(error).lower()
    if isinstance(error, FileNotFoundError):
        return BlobMissing(f"there is no blob {key}")
    if any(mark in text for mark in _FULL):
        return StorageFull(f"no space left to store {key}")
    return BlobError(f"blob {key}: {str(error).splitlines()[0]}")


def open_blobs(url: str) -> BlobStore:
    """Return the blob store at ``url`` (``file://``, ``s3://``, ``gs://``, ``az://``).

    Credentials of cloud stores come from their usual environment variables.

    Raises:
        BlobError: the URL cannot be understood or the directory cannot be made.
    """
    try:
        if urlsplit(url).scheme != "file":
            return BlobStore(from_url(url), None)
        root = Path(url2pathname(urlsplit(url).path))
        root.mkdir(parents=True, exist_ok=True)
        return BlobStore(LocalStore(root), root)
    except (BaseError, OSError, ValueError) as error:
        raise BlobError(f"blob store {url!r}: {error}") from error
