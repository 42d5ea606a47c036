"""What comes in is counted, hashed and bounded; what is refused leaves nothing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from batch_gateway.api.errors import HttpRefusal
from batch_gateway.api.intake import Intake, refuse_without_room
from vllm_batch.blobs import BlobStore, open_blobs
from vllm_batch.errors import StorageFull

MIB = 1024 * 1024


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return open_blobs((tmp_path / "blobs").as_uri())


def intake(blobs: BlobStore, *, bytes_max: int = 100 * MIB, free_bytes_min: int = 0) -> Intake:
    return Intake(
        blobs, "files/file-a", bytes_max=bytes_max, free_bytes_min=free_bytes_min, with_md5=True
    )


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


def left(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("contents", "lines"),
    [
        ((), 0),
        ((b"",), 0),
        ((b"a",), 1),
        ((b"a\n",), 1),
        ((b"a", b"\nb"), 2),
        ((b"\n\n", b"\n"), 3),
        ((b"x" * MIB + b"\n", b"y" * 3 * MIB), 2),
    ],
)
async def test_bytes_lines_and_hashes(
    blobs: BlobStore, contents: tuple[bytes, ...], lines: int
) -> None:
    one = intake(blobs)
    await one.store(pieces(*contents))
    whole = b"".join(contents)
    assert (one.bytes, one.lines) == (len(whole), lines)
    assert one.sha256 == hashlib.sha256(whole).hexdigest()
    assert one.md5 == hashlib.md5(whole).hexdigest()
    assert await blobs.get(one.key) == whole


async def test_too_much_is_noticed_on_the_way(blobs: BlobStore, tmp_path: Path) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 64 * 1024

    with pytest.raises(HttpRefusal) as refused:
        await intake(blobs, bytes_max=3 * MIB).store(endless())
    assert refused.value.status == 413
    assert taken <= 3 * 16 + 1
    assert left(tmp_path) == []


async def test_exactly_the_limit_is_allowed(blobs: BlobStore) -> None:
    one = intake(blobs, bytes_max=MIB)
    await one.store(pieces(b"x" * MIB))
    assert one.bytes == MIB
    one.bytes_max = MIB - 1
    with pytest.raises(HttpRefusal):
        one.check_size()


async def test_a_source_that_breaks_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    class Gone(Exception):
        pass

    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * 20 * MIB
        raise Gone

    with pytest.raises(Gone):
        await intake(blobs).store(breaking())
    assert left(tmp_path) == []


async def test_the_reserve_on_the_disk_is_kept(blobs: BlobStore, tmp_path: Path) -> None:
    free = blobs.free_bytes()
    assert free is not None
    with pytest.raises(StorageFull):
        await intake(blobs, free_bytes_min=free + 100 * MIB).store(pieces(b"x"))
    assert left(tmp_path) == []
    with pytest.raises(StorageFull):
        refuse_without_room(blobs, free + 100 * MIB, 0)
