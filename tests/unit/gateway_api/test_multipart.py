"""Forms however they are cut into pieces, and names however they are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.api.errors import HttpRefusal
from batch_gateway.api.multipart import Form
from vllm_batch.errors import InvalidInput

TYPE = "multipart/form-data; boundary=b"


def part(disposition: str, content: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


async def cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(body: bytes, size: int = 7) -> list[tuple[str, str | None, bytes]]:
    return [
        (one.name, one.filename, b"".join([piece async for piece in one.chunks()]))
        async for one in Form(TYPE, cut(body, size)).parts()
    ]


@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4), size=st.integers(1, 100))
def test_contents_survive_any_cut(contents: list[bytes], size: int) -> None:
    contents = [content.replace(b"\r\n--b", b"") for content in contents]
    body = b"".join(
        part(f'form-data; name="f{n}"; filename="n{n}"', content)
        for n, content in enumerate(contents)
    )
    found = asyncio.run(read(body + b"--b--\r\n", size))
    assert found == [(f"f{n}", f"n{n}", content) for n, content in enumerate(contents)]


def test_near_boundaries_in_the_content_are_content() -> None:
    content = b"\r\n--\r\n--a\r\n-\r\r\n--\n\r\n--B\r\n"
    for size in range(1, 40):
        body = part('form-data; name="f"', content) + b"--b--\r\n"
        assert asyncio.run(read(body, size)) == [("f", None, content)]


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ('form-data; name="f"; filename="plain.jsonl"', "plain.jsonl"),
        ("form-data; name=f; filename=bare.jsonl", "bare.jsonl"),
        ('form-data; filename="x"; name="f"', "x"),
        ('form-data; name="f"; filename="a;b=c"', "a;b=c"),
        ('form-data; name="f"; filename="say %22hi%22"', 'say "hi"'),
        ('form-data; name="f"; filename="say \\"hi\\""', 'say "hi"'),
        ('form-data; name="f"; filename="C:\\\\dir\\\\x"', "C:\\dir\\x"),
        ('form-data; name="f"; filename="100%25"', "100%25"),
        ('form-data; name="f"; filename="日本"', "日本"),
        ("form-data; name=f; filename*=UTF-8''%E6%97%A5", "日"),
        ("form-data; name=f; filename*=UTF-8''star; filename=plain", "plain"),
        ('form-data; name="f"; filename=""', ""),
        ('form-data; name="f"', None),
    ],
)
def test_names_are_read_as_they_were_meant(disposition: str, filename: str | None) -> None:
    found = asyncio.run(read(part(disposition, b"x") + b"--b--\r\n"))
    assert found == [("f", filename, b"x")]


def test_a_name_in_latin_1_is_no_error() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="\xe9"\r\n\r\nx\r\n--b--\r\n'
    assert asyncio.run(read(body)) == [("f", "é", b"x")]


def test_what_nobody_reads_is_skipped() -> None:
    body = (
        part('form-data; name="a"', b"1" * 500) + part('form-data; name="b"', b"2") + b"--b--\r\n"
    )

    async def names() -> list[str]:
        return [one.name async for one in Form(TYPE, cut(body, 9)).parts()]

    assert asyncio.run(names()) == ["a", "b"]


def test_a_field_is_bounded_and_text() -> None:
    async def text(content: bytes) -> str:
        body = part('form-data; name="a"', content) + b"--b--\r\n"
        form = Form(TYPE, cut(body, 9))
        return await (await anext(form.parts())).text(10)

    assert asyncio.run(text("äöü".encode())) == "äöü"
    with pytest.raises(HttpRefusal) as refused:
        asyncio.run(text(b"x" * 11))
    assert refused.value.status == 413
    with pytest.raises(InvalidInput, match="UTF-8"):
        asyncio.run(text(b"\xff"))


@pytest.mark.parametrize("body", [b"", b"x", b"--b", b"--b\r\n", part('form-data; name="a"', b"x")])
def test_a_form_that_ends_too_early_is_an_error(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        asyncio.run(read(body))


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "multipart/mixed; boundary=b",
        "multipart/form-data",
        "multipart/form-data; x",
    ],
)
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(InvalidInput):
        Form(content_type, cut(b"", 1))
