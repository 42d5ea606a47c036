"""The blob store's contract, held on a local disk and on a real S3 server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conftest import S3Bucket
from tests.worker_bench import until

from vllm_batch.blobs import BlobStore, open_blobs
from vllm_batch.errors import BlobError, BlobMissing, StorageFull

MIB = 1024 * 1024


@pytest.fixture(params=["file", "s3"])
def blobs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BlobStore:
    if request.param == "file":
        return open_blobs((tmp_path / "with space" / "blobs").as_uri())
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return open_blobs(bucket.url)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def everything(blobs: BlobStore, key: str, **bounds: int) -> bytes:
    return b"".join([part async for part in blobs.stream(key, **bounds)])


async def test_what_is_put_can_be_got_whole_and_in_ranges(blobs: BlobStore) -> None:
    await blobs.put("files/a", b"0123456789")
    assert await blobs.get("files/a") == b"0123456789"
    assert await blobs.get("files/a", start=3, length=4) == b"3456"
    assert await blobs.get("files/a", start=7) == b"789"
    assert await everything(blobs, "files/a", start=2, length=3) == b"234"
    assert await blobs.size("files/a") == 10


async def test_a_put_replaces(blobs: BlobStore) -> None:
    await blobs.put("files/a", b"old")
    await blobs.put("files/a", b"new")
    assert await blobs.get("files/a") == b"new"


async def test_a_stream_is_stored_whole(blobs: BlobStore) -> None:
    parts = [bytes([n]) * MIB for n in range(12)]
    await blobs.put_stream("files/a", pieces(*parts))
    assert await everything(blobs, "files/a") == b"".join(parts)


async def test_a_stream_that_breaks_leaves_nothing(blobs: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        raise ConnectionResetError("the client went away")

    with pytest.raises((BlobError, ConnectionResetError)):
        await blobs.put_stream("files/a", broken())
    with pytest.raises(BlobMissing):
        await blobs.get("files/a")
    assert [key async for key in blobs.list("files")] == []


async def test_what_is_not_there_is_said_to_be_missing(blobs: BlobStore) -> None:
    for attempt in (blobs.get("files/no"), blobs.get("files/no", length=1), blobs.size("files/no")):
        with pytest.raises(BlobMissing):
            await attempt
    await blobs.delete("files/no")


async def test_deleting_everything_below_a_prefix(blobs: BlobStore) -> None:
    for key in ("segments/j/0/1-0", "segments/j/1/1-0", "segments/jj/0/1-0"):
        await blobs.put(key, b"x")
    assert await blobs.delete_all("segments/j") == 2
    assert [key async for key in blobs.list("segments")] == ["segments/jj/0/1-0"]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a//b"])
async def test_no_key_leaves_the_root(blobs: BlobStore, key: str) -> None:
    with pytest.raises((BlobError, ValueError)):
        await blobs.put(key, b"x")


async def test_a_url_that_means_nothing_is_refused() -> None:
    with pytest.raises(BlobError):
        open_blobs("nonsense://x/y")


async def test_a_full_disk_is_named_and_nothing_is_left(small_disk: Path) -> None:
    blobs = open_blobs(small_disk.as_uri())
    with pytest.raises(StorageFull):
        await blobs.put("files/a", b"x" * 5 * MIB)
    with pytest.raises(StorageFull):
        await blobs.put_stream("files/b", pieces(*[b"x" * MIB] * 6))
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []

    async def there_is_room() -> bool:
        try:
            await blobs.put("files/c", b"x" * 3 * MIB)
        except StorageFull:  # threads that wrote the parts of before may still hold their file
            return False
        return True

    await until(there_is_room)
