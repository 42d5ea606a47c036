"""Files through the official client, and a bare one where that would not send such things."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from tests.gateway_bench import Gateway

JSONL = b'{"custom_id": "a"}\n'


async def test_a_file_makes_the_full_round(client: openai.AsyncOpenAI) -> None:
    made = await client.files.create(file=("in.jsonl", JSONL), purpose="batch")
    assert made.id.startswith("file-")
    assert (made.object, made.bytes, made.filename) == ("file", len(JSONL), "in.jsonl")
    assert (made.purpose, made.status, made.status_details) == ("batch", "processed", None)
    assert made.expires_at == made.created_at + 30 * 24 * 3600
    assert await client.files.retrieve(made.id) == made
    assert [file async for file in client.files.list()] == [made]
    assert (await client.files.content(made.id)).content == JSONL
    deleted = await client.files.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.content(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.delete(made.id)
    assert [file async for file in client.files.list()] == []


def test_the_synchronous_client_takes_every_kind_of_file(
    api: Gateway, tmp_path: os.PathLike[str]
) -> None:
    client = api.client(asyncio.run(api.new_key()))
    path = os.path.join(tmp_path, "on disk.jsonl")  # noqa: PTH118
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(JSONL)
    with open(path, "rb") as opened:  # noqa: PTH123
        names = [
            client.files.create(file=given, purpose="user_data").filename  # type: ignore[arg-type]
            for given in (opened, JSONL, ("n.bin", io.BytesIO(JSONL), "text/plain"))
        ]
    assert names == ["on disk.jsonl", "upload", "n.bin"]
    assert client.files.wait_for_processing(client.files.list().data[0].id).status == "processed"
    client.close()


@pytest.mark.parametrize(
    "filename",
    [
        "日本語 ünïcode 🎉.jsonl",
        "../../etc/passwd",
        "C:\\temp\\in.jsonl",
        'with "quotes".jsonl',
        "line\r\nbreak: x.jsonl",
        "x" * 300 + ".jsonl",
        "semi;colon=1.jsonl",
    ],
)
async def test_a_filename_is_kept_as_it_was_sent_and_never_used(
    client: openai.AsyncOpenAI, filename: str
) -> None:
    made = await client.files.create(file=(filename, JSONL), purpose="batch")
    assert made.filename == filename
    answer = await client.files.content(made.id)
    assert answer.content == JSONL
    disposition = answer.response.headers["content-disposition"]
    assert disposition.startswith("attachment; ")
    assert disposition.isascii()


async def test_bytes_come_back_as_they_were(client: openai.AsyncOpenAI) -> None:
    content = b"\xef\xbb\xbf" + b'{"a": 1}\r\n\r\n' * 3 + bytes(range(256)) * 9000 + b"no newline"
    made = await client.files.create(file=("in.jsonl", content), purpose="batch")
    assert made.bytes == len(content)
    assert (await client.files.content(made.id)).content == content


async def test_two_uploads_of_the_same_bytes_are_two_files(client: openai.AsyncOpenAI) -> None:
    first = await client.files.create(file=("a", JSONL), purpose="batch")
    second = await client.files.create(file=("a", JSONL), purpose="batch")
    await client.files.delete(first.id)
    assert (await client.files.content(second.id)).content == JSONL


async def test_expires_after_counts_from_creation(client: openai.AsyncOpenAI) -> None:
    made = await client.files.create(
        file=("a", JSONL),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert made.expires_at == made.created_at + 3600
    never = await client.files.create(file=("a", JSONL), purpose="user_data")
    assert never.expires_at is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "nonsense"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        (
            {"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        *(
            (
                {
                    "purpose": "batch",
                    "expires_after[anchor]": "created_at",
                    "expires_after[seconds]": seconds,
                },
                "expires_after.seconds",
            )
            for seconds in ("3599", "2592001", "-1", "1e9", "soon", "", "9" * 400)
        ),
    ],
)
async def test_wrong_fields_are_named(
    http: httpx2.AsyncClient, fields: dict[str, str], param: str
) -> None:
    answer = await http.post("/files", data=fields, files={"file": ("a", JSONL)})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert (await http.get("/files")).json()["data"] == []


async def test_no_file_two_files_and_an_empty_file_are_refused(http: httpx2.AsyncClient) -> None:
    for files in (
        [("nothing", ("a", JSONL))],
        [("file", ("a", JSONL)), ("file", ("b", JSONL))],
        [("file", ("a", b""))],
    ):
        answer = await http.post("/files", data={"purpose": "batch"}, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"purpose": "batch"}'),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=" + "x" * 500, b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"this is no form"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut off',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"h" * 100_000 + b"\r\n\r\n"),
    ],
)
async def test_a_broken_form_is_a_400(
    http: httpx2.AsyncClient, content_type: str, body: bytes
) -> None:
    answer = await http.post("/files", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def form(order: list[bytes]) -> tuple[dict[str, str], AsyncIterator[bytes]]:
    """A form sent in small pieces and without Content-Length."""
    parts = {
        b"file": b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + JSONL * 5000,
        b"purpose": b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch',
        b"other": b'Content-Disposition: form-data; name="other"\r\n\r\nignored',
    }
    body = b"".join(b"--x\r\n" + parts[name] + b"\r\n" for name in order) + b"--x--\r\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1237):
            yield body[start : start + 1237]

    return {"content-type": "multipart/form-data; boundary=x"}, pieces()


@pytest.mark.parametrize(
    "order", [[b"file", b"purpose"], [b"purpose", b"file"], [b"other", b"file", b"purpose"]]
)
async def test_fields_come_in_any_order_and_without_a_length(
    http: httpx2.AsyncClient, order: list[bytes]
) -> None:
    headers, pieces = form(order)
    answer = await http.post("/files", content=pieces, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["bytes"] == len(JSONL) * 5000
    content = await http.get(f"/files/{answer.json()['id']}/content")
    assert content.content == JSONL * 5000


@pytest.mark.parametrize(
    ("wanted", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=4-999999999999999999", 206, b"456789", "bytes 4-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=x-y", 200, b"0123456789", None),
    ],
)
async def test_a_range_of_the_content(
    http: httpx2.AsyncClient,
    wanted: str,
    status: int,
    content: bytes | None,
    content_range: str | None,
) -> None:
    made = await http.post(
        "/files", data={"purpose": "evals"}, files={"file": ("a", b"0123456789")}
    )
    answer = await http.get(f"/files/{made.json()['id']}/content", headers={"range": wanted})
    assert answer.status_code == status
    assert answer.headers.get("content-range") == content_range
    if content is None:
        assert answer.json()["error"]["message"]
    else:
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))


async def test_a_download_is_resumed_only_of_the_same_bytes(http: httpx2.AsyncClient) -> None:
    made = await http.post(
        "/files", data={"purpose": "evals"}, files={"file": ("a", b"0123456789")}
    )
    path = f"/files/{made.json()['id']}/content"
    head = await http.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")
    same = {"range": "bytes=8-", "if-range": head.headers["etag"]}
    assert (await http.get(path, headers=same)).content == b"89"
    other = {"range": "bytes=8-", "if-range": '"other"'}
    assert (await http.get(path, headers=other)).content == b"0123456789"


async def test_lists_page_in_both_orders_without_gaps_while_files_arrive(
    client: openai.AsyncOpenAI,
) -> None:
    made = [(await client.files.create(file=(f"{n}", JSONL), purpose="batch")).id for n in range(7)]
    page = await client.files.list(limit=3, order="desc")
    seen = [file.id for file in page.data]
    await client.files.create(file=("late", JSONL), purpose="batch")
    while page.has_next_page():
        page = await page.get_next_page()
        seen += [file.id for file in page.data]
    assert seen == made[::-1]
    oldest_first = [file.id async for file in client.files.list(limit=2, order="asc")]
    assert oldest_first[:7] == made
    assert len(oldest_first) == 8


async def test_a_full_last_page_says_that_it_is_the_last(http: httpx2.AsyncClient) -> None:
    for _ in range(4):
        await http.post("/files", data={"purpose": "batch"}, files={"file": ("a", JSONL)})
    await http.post("/files", data={"purpose": "evals"}, files={"file": ("a", JSONL)})
    first = (await http.get("/files", params={"purpose": "batch", "limit": 2})).json()
    assert (first["object"], first["has_more"]) == ("list", True)
    assert [first["first_id"], first["last_id"]] == [first["data"][0]["id"], first["data"][1]["id"]]
    last = (
        await http.get("/files", params={"purpose": "batch", "limit": 2, "after": first["last_id"]})
    ).json()
    assert (len(last["data"]), last["has_more"]) == (2, False)
    empty = (await http.get("/files", params={"purpose": "vision"})).json()
    assert empty == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=10001", "limit=x", "limit=", "order=up", "purpose=x", "after=file-unknown",
     "after=%00", "after=../..", "purpose=%00", "limit=99999999999999999999"],
)  # fmt: skip
async def test_wrong_questions_to_a_list_are_refused(http: httpx2.AsyncClient, query: str) -> None:
    answer = await http.get(f"/files?{query}")
    assert answer.status_code in {400, 404}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
