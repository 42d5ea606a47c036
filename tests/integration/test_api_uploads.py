"""Uploads that go wrong: full disks, lost clients, too many bytes. Nothing may be left behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import psutil
import pytest
from tests.gateway_bench import Gateway, gateway

MIB = 1024 * 1024
HEADERS = {"content-type": "multipart/form-data; boundary=x"}
PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def left(blobs: Path) -> list[str]:
    return [str(path) for path in blobs.rglob("*") if path.is_file()]


async def body(size: int, *, purpose_first: bool = True) -> AsyncIterator[bytes]:
    """A form of a file of ``size`` bytes, sent without Content-Length."""
    if purpose_first:
        yield PURPOSE
    yield FILE
    for start in range(0, size, 64 * 1024):
        yield b"y" * min(64 * 1024, size - start)
    yield b"\r\n"
    if not purpose_first:
        yield PURPOSE
    yield b"--x--\r\n"


async def test_a_disk_that_is_full_is_said_and_left_as_it_was(
    small_disk: Path, tmp_path: Path
) -> None:
    blobs = small_disk / "blobs"
    home = tmp_path / "home"
    with gateway(
        home, with_postgres=False, blob_url=blobs.as_uri(), blob_free_bytes_min=0
    ) as running:
        key = await running.new_key()
        async with running.http(key) as http:
            for declared in (True, False):
                content = b"".join([piece async for piece in body(6 * MIB)])
                answer = await http.post(
                    "/files", content=content if declared else body(6 * MIB), headers=HEADERS
                )
                assert answer.status_code == 507
                error = answer.json()["error"]
                assert (error["type"], error["code"]) == ("server_error", "storage_full")
                assert answer.headers["x-should-retry"] == "false"
                assert left(blobs) == []
            upload = await http.post(
                "/uploads",
                json={"bytes": 3 * MIB, "filename": "a", "mime_type": "x", "purpose": "evals"},
            )
            path = f"/uploads/{upload.json()['id']}/parts"
            parts = [
                (await http.post(path, files={"data": ("p", b"x" * (3 * MIB // 2))})).json()["id"]
                for _ in range(2)
            ]
            full = await http.post(
                f"/uploads/{upload.json()['id']}/complete", json={"part_ids": parts}
            )
            assert full.status_code == 507  # parts and file do not fit together
            assert len(left(blobs)) == 2
            await http.post(f"/uploads/{upload.json()['id']}/cancel")
            assert left(blobs) == []
        async with running.async_client(key, max_retries=2) as client:
            made = await client.files.create(file=("a", b"x" * 3 * MIB), purpose="batch")
            assert (await client.files.content(made.id)).content == b"x" * 3 * MIB


async def test_a_reserve_is_kept_for_the_event_log(small_disk: Path, tmp_path: Path) -> None:
    blobs = small_disk / "blobs"
    with gateway(
        tmp_path / "home", with_postgres=False, blob_url=blobs.as_uri(), blob_free_bytes_min=2 * MIB
    ) as running:
        async with running.http(await running.new_key()) as http:
            for size, status in ((3 * MIB, 507), (MIB, 200)):
                answer = await http.post("/files", content=body(size), headers=HEADERS)
                assert answer.status_code == status
            assert len(left(blobs)) == 1


async def test_too_many_bytes_are_413_for_the_official_client_too(tmp_path: Path) -> None:
    blobs = tmp_path / "home" / "blobs"
    with gateway(
        tmp_path / "home",
        with_postgres=False,
        file_bytes_max=8 * MIB,
        batch_file_bytes_max=2 * MIB,
    ) as running:
        key = await running.new_key()
        async with running.async_client(key) as client, running.http(key) as http:
            for size, purpose in ((20 * MIB, "user_data"), (3 * MIB, "batch")):
                with pytest.raises(openai.APIStatusError) as refused:
                    await client.files.create(file=("a", b"x" * size), purpose=purpose)  # type: ignore[arg-type]
                assert refused.value.status_code == 413
                assert "limit" in refused.value.message
            for size in (2 * MIB + 1, 20 * MIB):
                for purpose_first in (True, False):
                    answer = await http.post(
                        "/files", content=body(size, purpose_first=purpose_first), headers=HEADERS
                    )
                    assert answer.status_code == 413
            assert left(blobs) == []
            exact = await http.post("/files", content=body(2 * MIB), headers=HEADERS)
            assert (exact.status_code, exact.json()["bytes"]) == (200, 2 * MIB)


async def test_a_client_that_vanishes_in_mid_upload_leaves_nothing(tmp_path: Path) -> None:
    blobs = tmp_path / "home" / "blobs"
    with gateway(tmp_path / "home", with_postgres=False) as running:
        key = await running.new_key()
        for declared in (b"content-length: 100000000", b"transfer-encoding: chunked"):
            half = PURPOSE + FILE + b"z" * 30 * MIB
            if declared.startswith(b"transfer"):
                half = b"%x\r\n%s\r\n" % (len(half), half)
            await asyncio.to_thread(send_and_vanish, running, key, declared, half, blobs)
            async with asyncio.timeout(120):
                while left(blobs):
                    await asyncio.sleep(0.02)
        async with running.store() as store:
            assert [batch async for batch in store.read("file.>")] == []


def send_and_vanish(running: Gateway, key: str, declared: bytes, half: bytes, blobs: Path) -> None:
    address = urlsplit(running.url)
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n"
        b"content-type: multipart/form-data; boundary=x\r\n%s\r\n\r\n"
    ) % (key.encode(), declared)
    with socket.create_connection((str(address.hostname), address.port or 0)) as client:
        client.sendall(head + half)
        assert left(blobs)  # it has begun to store


async def test_an_upload_needs_constant_memory(tmp_path: Path) -> None:
    with gateway(tmp_path / "home", with_postgres=False) as running:
        process = psutil.Process(running.stack.service("api").pid)
        async with running.http(await running.new_key()) as http:
            http.timeout = httpx2.Timeout(120)  # the answer comes when all of it is on the disk
            small = await http.post("/files", content=body(MIB), headers=HEADERS)
            assert small.status_code == 200
            before = process.memory_info().rss
            peak = 0
            uploading = asyncio.create_task(
                http.post("/files", content=body(190 * MIB), headers=HEADERS)
            )
            while not uploading.done():
                peak = max(peak, process.memory_info().rss)
                await asyncio.sleep(0.01)
            made = uploading.result()
            assert made.status_code == 200
            size = await download(http, made.json()["id"])
            peak = max(peak, process.memory_info().rss)
        assert size == 190 * MIB
        assert peak - before < 110 * MIB
        assert peak < 200 * MIB


async def download(http: httpx2.AsyncClient, file_id: str) -> int:
    async with http.stream("GET", f"/files/{file_id}/content") as answer:
        return sum([len(piece) async for piece in answer.aiter_raw()])
