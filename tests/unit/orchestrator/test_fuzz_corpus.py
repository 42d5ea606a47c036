"""Files that nobody should send, through the whole planner.

A job is planned or failed, never stuck; every error names a line that is there; what is planned
covers each request once.
"""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.orchestrator.bench import OrchestratorBench
from tests.unit.orchestrator.test_planner import covered, plan

from vllm_batch.aggregates.job import Job, JobStatus

REQUEST_BYTES_MAX = 4096
VALIDATION_ERRORS_MAX = 10


def line(custom_id: str = "a", **body: object) -> bytes:
    full = {"model": "m", "messages": [], **body}
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": full}
    ).encode()


GOOD = line()
CORPUS: dict[str, bytes] = {
    "nothing but newlines": b"\n\r\n\n",
    "one space": b" ",
    "a NUL": b"\0",
    "NUL between requests": GOOD + b"\n\0\n" + line("b"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "a byte order mark alone": b"\xef\xbb\xbf",
    "two byte order marks": b"\xef\xbb\xbf" * 2 + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "latin-1": line("é", x="ü").decode().encode("latin-1", "replace").replace(b"\\u00e9", b"\xe9"),
    "CRLF": GOOD + b"\r\n" + line("b") + b"\r\n",
    "CR alone": GOOD + b"\r" + line("b"),
    "vertical tabs and form feeds": GOOD + b"\x0b" + line("b") + b"\x0c",
    "U+2028 in a string": line("a", x="\u2028").replace(b"\\u2028", "\u2028".encode()),
    "no newline at the end": GOOD + b"\n" + line("b"),
    "the same id often": b"\n".join([GOOD] * 50),
    "ids that differ by case and width": b"\n".join(
        line(i) for i in ("a", "A", "\uff41", "\u0430")
    ),
    "an empty id": line(""),
    "an id of NUL": line("\0"),
    "a very long id": line("x" * 2000),
    "half a surrogate": GOOD.replace(b'"a"', rb'"\ud800"'),
    "keys twice": GOOD[:-1] + b', "custom_id": "b"}',
    "the body twice": GOOD[:-1] + b', "body": {}}',
    "a huge number": line("a", temperature=0).replace(b": 0", b": 1" + b"0" * 3000),
    "a huge exponent": line("a", temperature=0).replace(b": 0", b": 1e999999999"),
    "NaN": line("a", temperature=0).replace(b": 0", b": NaN"),
    "minus zero": line("a", temperature=0).replace(b": 0", b": -0.0"),
    "comments": b"// requests\n" + GOOD,
    "a trailing comma": GOOD[:-1] + b",}",
    "deep arrays": line("a", x=0).replace(b'"x": 0', b'"x": ' + b"[" * 2000),
    "deep closed arrays": line("a", x=0).replace(b'"x": 0', b'"x": ' + b"[" * 900 + b"]" * 900),
    "deep objects": b'{"a":' * 1500 + b"1" + b"}" * 1500,
    "an array of requests": b"[" + GOOD + b"]",
    "pretty-printed": json.dumps(json.loads(GOOD), indent=2).encode(),
    "too long a line": line("a", x="y" * REQUEST_BYTES_MAX),
    "too long a line first": line("a", x="y" * REQUEST_BYTES_MAX) + b"\n" + line("b"),
    "a long line of spaces": b" " * (REQUEST_BYTES_MAX + 1) + b"\n" + GOOD,
    "HTML": b"<!DOCTYPE html><html></html>",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "a zip bomb's head": b"PK\x03\x04" + b"\xff" * 100,
    "YAML": b"custom_id: a\nmethod: POST\n",
    "CSV": b"custom_id,method\na,POST\n",
    "another method": GOOD.replace(b"POST", b"GET"),
    "another url": GOOD.replace(b"/chat", b"/../chat"),
    "the model a number": line("a", model=7),
    "an unknown model": line("a", model="unknown"),
    "the model an injection": line("a", model="m'; DROP TABLE job; --"),
    "wildcards for a model": line("a", model="*.>"),
    "the body null": GOOD[: GOOD.index(b'"body"')] + b'"body": null}',
    "the body a string": GOOD[: GOOD.index(b'"body"')] + b'"body": "{}"}',
}


async def outcome(bench: OrchestratorBench, content: bytes) -> tuple[Job, list[str]]:
    """Plan ``content``; return the job and the ids of the requests that its chunks hold."""
    submitted = await bench.submit("x", content)
    await plan(
        bench, submitted, request_bytes_max=REQUEST_BYTES_MAX, json_depth_max=1000,
        validation_errors_max=VALIDATION_ERRORS_MAX,
    )  # fmt: skip
    return await bench.job(submitted.job_id), await covered(bench, submitted.job_id)


def check(content: bytes, job: Job, ids: list[str]) -> None:
    lines = content.count(b"\n") + 1
    if job.status is JobStatus.FAILED:
        assert job.failed is not None
        assert job.failed.error_count >= len(job.failed.errors) >= 1
        assert len(job.failed.errors) <= VALIDATION_ERRORS_MAX + 2
        for error in job.failed.errors:
            assert error.code
            assert error.message
            assert len(error.message) < 1000
            assert error.line is None or 1 <= error.line <= lines
        assert not ids
        return
    assert job.status is JobStatus.RUNNING
    assert job.started is not None
    assert job.started.total == len(ids) == len(set(ids)) >= 1


@pytest.mark.parametrize("name", CORPUS)
async def test_the_corpus(bench: OrchestratorBench, name: str) -> None:
    job, ids = await outcome(bench, CORPUS[name])
    check(CORPUS[name], job, ids)


@pytest.mark.parametrize("seed", range(40))
async def test_a_good_file_with_bytes_changed(bench: OrchestratorBench, seed: int) -> None:
    rng = random.Random(seed)
    content = bytearray(b"\n".join(line(f"r{n}", x='é\\"{}') for n in range(12)))
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(content))
        match rng.randrange(3):
            case 0:
                content[place] = rng.randrange(256)
            case 1:
                del content[place : place + rng.randrange(1, 40)]
            case 2:
                content[place:place] = rng.choice([b"\n", b"\r\n", b"\0", b"{", b'"', b"\xff"])
    job, ids = await outcome(bench, bytes(content))
    check(bytes(content), job, ids)


@given(content=st.binary(max_size=400))
async def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    bench = OrchestratorBench(tmp_path_factory.mktemp("fuzz"))
    job, ids = await outcome(bench, content or b"\n")
    check(content or b"\n", job, ids)


@given(
    parts=st.lists(st.sampled_from([GOOD, *CORPUS.values()]), min_size=1, max_size=6),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
async def test_any_of_it_together(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], end: bytes
) -> None:
    bench = OrchestratorBench(tmp_path_factory.mktemp("fuzz"))
    content = end.join(parts)
    job, ids = await outcome(bench, content)
    check(content, job, ids)
