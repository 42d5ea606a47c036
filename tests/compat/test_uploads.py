"""Uploads in parts through the official client."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx2
import openai
import pytest
from tests.gateway_bench import Gateway, gateway

CONTENT = b"".join(b'{"custom_id": "%d"}\n' % number for number in range(1000))


def test_the_client_uploads_a_file_in_chunks(api: Gateway) -> None:
    client = api.client(asyncio.run(api.new_key()))
    upload = client.uploads.upload_file_chunked(
        file=CONTENT,
        filename="in.jsonl",
        bytes=len(CONTENT),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=1000,
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    assert (upload.status, upload.bytes) == ("completed", len(CONTENT))
    assert upload.file is not None
    assert (upload.file.filename, upload.file.purpose) == ("in.jsonl", "batch")
    assert client.files.content(upload.file.id).content == CONTENT
    assert client.files.retrieve(upload.file.id) == upload.file
    assert [file.id for file in client.files.list()] == [upload.file.id]
    client.close()


async def test_parts_arrive_in_parallel_and_in_any_order(client: openai.AsyncOpenAI) -> None:
    upload = await client.uploads.create(
        bytes=len(CONTENT), filename="a", mime_type="text/plain", purpose="user_data"
    )
    assert (upload.object, upload.status, upload.file) == ("upload", "pending", None)
    assert upload.expires_at == upload.created_at + 3600
    size = len(CONTENT) // 20
    pieces = [CONTENT[start : start + size] for start in range(0, len(CONTENT), size)]
    parts = await asyncio.gather(
        *(client.uploads.parts.create(upload.id, data=piece) for piece in reversed(pieces))
    )
    assert {(part.object, part.upload_id) for part in parts} == {("upload.part", upload.id)}
    done = await client.uploads.complete(upload.id, part_ids=[part.id for part in reversed(parts)])
    assert done.file is not None
    assert (await client.files.content(done.file.id)).content == CONTENT


async def opened(client: openai.AsyncOpenAI, *pieces: bytes) -> tuple[str, list[str]]:
    size = sum(len(piece) for piece in pieces)
    upload = await client.uploads.create(
        bytes=size, filename="a", mime_type="text/plain", purpose="user_data"
    )
    parts = [await client.uploads.parts.create(upload.id, data=piece) for piece in pieces]
    return upload.id, [part.id for part in parts]


async def test_what_does_not_fit_is_refused_and_can_be_put_right(
    client: openai.AsyncOpenAI,
) -> None:
    upload_id, (first, second) = await opened(client, b"one", b"two!")
    for part_ids, md5 in (
        ([first], None),
        ([first, first], None),
        ([first, second, "part_unknown"], None),
        ([], None),
        ([first, second], hashlib.md5(b"other").hexdigest()),
        ([first, second], "x" * 33),
    ):
        with pytest.raises(openai.BadRequestError):
            await client.uploads.complete(
                upload_id, part_ids=part_ids, **({"md5": md5} if md5 else {})
            )
    assert [file async for file in client.files.list()] == []
    md5 = hashlib.md5(b"onetwo!").hexdigest().upper()
    done = await client.uploads.complete(upload_id, part_ids=[first, second], md5=md5)
    assert done.file is not None
    assert (await client.files.content(done.file.id)).content == b"onetwo!"


async def test_nothing_is_added_after_the_end(client: openai.AsyncOpenAI) -> None:
    upload_id, part_ids = await opened(client, b"one", b"two!")
    done = await client.uploads.complete(upload_id, part_ids=part_ids)
    again = await client.uploads.complete(upload_id, part_ids=part_ids)
    assert again == done  # the answer to the first may have been lost
    with pytest.raises(openai.BadRequestError, match="completed"):
        await client.uploads.parts.create(upload_id, data=b"more")
    with pytest.raises(openai.BadRequestError, match="completed"):
        await client.uploads.complete(upload_id, part_ids=part_ids[::-1])
    with pytest.raises(openai.BadRequestError, match="completed"):
        await client.uploads.cancel(upload_id)


async def test_a_cancelled_upload_stays_cancelled(client: openai.AsyncOpenAI) -> None:
    upload_id, part_ids = await opened(client, b"one")
    assert (await client.uploads.cancel(upload_id)).status == "cancelled"
    assert (await client.uploads.cancel(upload_id)).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        await client.uploads.complete(upload_id, part_ids=part_ids)
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        await client.uploads.parts.create(upload_id, data=b"more")


async def test_other_projects_and_unknown_uploads_are_not_found(
    api: Gateway, client: openai.AsyncOpenAI
) -> None:
    upload_id, part_ids = await opened(client, b"one")
    async with api.async_client(await api.new_key()) as stranger:
        for id_ in (upload_id, "upload_unknown", "a.b", "*", ">"):
            with pytest.raises(openai.NotFoundError):
                await stranger.uploads.parts.create(id_, data=b"x")
            with pytest.raises(openai.NotFoundError):
                await stranger.uploads.complete(id_, part_ids=part_ids)
            with pytest.raises(openai.NotFoundError):
                await stranger.uploads.cancel(id_)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": "7"}, "bytes"),
        ({"bytes": 1.5}, "bytes"),
        ({"bytes": True}, "bytes"),
        ({"bytes": 8 * 1024**3 + 1}, "bytes"),
        ({"bytes": None}, "bytes"),
        ({"filename": ""}, "filename"),
        ({"filename": "nul\0"}, "filename"),
        ({"filename": 7}, "filename"),
        ({"purpose": "nonsense"}, "purpose"),
        ({"mime_type": None}, "mime_type"),
        ({"expires_after": "soon"}, "expires_after"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
        ({"purpose": "batch", "bytes": 200 * 1024**2 + 1}, "bytes"),
    ],
)
async def test_wrong_values_are_named(
    http: httpx2.AsyncClient, change: dict[str, object], param: str
) -> None:
    body = {"bytes": 7, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    answer = await http.post("/uploads", json=body | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("missing", ["bytes", "filename", "mime_type", "purpose"])
async def test_missing_values_are_named(http: httpx2.AsyncClient, missing: str) -> None:
    body = {"bytes": 7, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    del body[missing]
    error = (await http.post("/uploads", json=body)).json()["error"]
    assert (error["param"], error["code"]) == (missing, "missing_required_parameter")


async def test_parts_are_bounded_and_leave_nothing_behind(tmp_path: Path) -> None:
    with gateway(tmp_path / "home", with_postgres=False, upload_part_bytes_max=1000) as small:
        async with small.http(await small.new_key()) as http:
            body = {"bytes": 500, "filename": "a", "mime_type": "x", "purpose": "user_data"}
            upload = (await http.post("/uploads", json=body)).json()
            path = f"/uploads/{upload['id']}/parts"
            too_large = await http.post(path, files={"data": ("p", b"x" * 1001)})
            assert too_large.status_code == 413
            for _ in range(2):
                assert (await http.post(path, files={"data": ("p", b"x" * 900)})).status_code == 200
            far_too_much = await http.post(path, files={"data": ("p", b"x" * 900)})
            assert far_too_much.status_code == 400
            empty = await http.post(path, files={"data": ("p", b"")})
            nothing = await http.post(path, files={"other": ("p", b"x")})
            assert [empty.status_code, nothing.status_code] == [400, 400]
        parts = [file for file in (tmp_path / "home" / "blobs").rglob("*") if file.is_file()]
        assert len(parts) == 2
