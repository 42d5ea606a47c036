"""Bad input through the whole stack: a clear error in OpenAI's form, and neighbours unharmed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from tests.e2e.conftest import ENDPOINT, LARGEST_FILE_BYTES, MIB, Round, jsonl

Edit = Callable[[dict[str, Any]], Any]


def without(key: str) -> Edit:
    return lambda line: {name: value for name, value in line.items() if name != key}


def with_(**fields: Any) -> Edit:
    return lambda line: {**line, **fields}


def body_with(**fields: Any) -> Edit:
    return lambda line: {**line, "body": {**line["body"], **fields}}


def body_without(key: str) -> Edit:
    return lambda line: {**line, "body": without(key)(line["body"])}


@pytest.mark.parametrize(
    ("edit", "code", "param"),
    [
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        (body_without("model"), "missing_required_parameter", "body.model"),
        (with_(custom_id=7), "invalid_value", "custom_id"),
        (with_(body="text"), "invalid_value", "body"),
        (with_(custom_id="same-0"), "duplicate_custom_id", "custom_id"),
        (with_(method="GET"), "invalid_method", "method"),
        (with_(url="/v1/embeddings"), "invalid_url", "url"),
        (body_with(model="another"), "mismatched_model", "body.model"),
        (lambda _: ["not", "an", "object"], "invalid_json_line", None),
    ],
)
def test_a_wrong_line_fails_the_batch_and_is_named(
    simulated: Round, edit: Edit, code: str, param: str | None
) -> None:
    lines = [simulated.line(f"same-{number}") for number in range(5)]
    lines[3] = edit(lines[3])
    batch = simulated.run(lines)
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.errors
    assert batch.errors.data
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == (code, param, 4)
    assert error.message
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (0, 0, 0)


@pytest.mark.parametrize("broken", [b'{"custom_id": "x"', b"\xff\xfe{}", b'"\xc3("', b"nonsense"])
def test_a_line_that_is_no_json_is_named_by_its_physical_line(
    simulated: Round, broken: bytes
) -> None:
    good = jsonl([simulated.line("a")]), jsonl([simulated.line("b")])
    batch = simulated.wait(simulated.submit(b"\n" + good[0] + b"\r\n" + broken + b"\n" + good[1]))
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 4)]


def test_invalid_utf_8_inside_a_custom_id_is_named(simulated: Round) -> None:
    line = jsonl([simulated.line("bad-id")]).replace(b"bad-id", b"\xff\xfe")
    batch = simulated.wait(simulated.submit(line))
    assert batch.errors
    assert batch.errors.data
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 1)]


@pytest.mark.parametrize("content", [b"\n", b"\r\n \n\t\n", b"\xef\xbb\xbf\n"])
def test_a_file_without_requests_is_empty(simulated: Round, content: bytes) -> None:
    batch = simulated.wait(simulated.submit(content))
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    assert [error.code for error in batch.errors.data] == ["empty_file"]


def test_too_many_requests_are_refused(simulated: Round) -> None:
    lines = jsonl([simulated.line("@")]).replace(b'"@"', b'"%d"')
    batch = simulated.wait(simulated.submit(b"".join(lines % n for n in range(50_001))))
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    assert [error.code for error in batch.errors.data] == ["too_many_tasks"]


def test_too_large_a_file_is_refused_at_upload(simulated: Round) -> None:
    before = len(list(simulated.client.files.list()))
    with pytest.raises(openai.APIStatusError) as caught:
        simulated.client.files.create(
            file=("in.jsonl", b"x" * (LARGEST_FILE_BYTES + 1)), purpose="batch"
        )
    assert caught.value.status_code == 413
    assert str(LARGEST_FILE_BYTES) in caught.value.message
    assert len(list(simulated.client.files.list())) == before


def test_many_errors_are_listed_with_their_lines(simulated: Round) -> None:
    lines = [simulated.line("same") for _ in range(150)]
    batch = simulated.run(lines)
    assert batch.errors
    assert batch.errors.data
    assert [error.line for error in batch.errors.data] == list(range(2, 102))


def test_a_model_that_nobody_serves_fails_instead_of_hanging(simulated: Round) -> None:
    batch = simulated.run([simulated.line("a", model="no-such-model")])
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    assert batch.errors.data[0].code == "model_not_found"


def test_bom_crlf_blank_lines_and_a_last_line_without_end_are_fine(simulated: Round) -> None:
    rows = [json.dumps(simulated.line(f"r-{number}")).encode() for number in range(3)]
    content = b"\xef\xbb\xbf" + rows[0] + b"\r\n\r\n" + rows[1] + b"\n\n  \n" + rows[2]
    batch = simulated.wait(simulated.submit(content))
    assert batch.status == "completed"
    assert [row["custom_id"] for row in simulated.rows(batch.output_file_id)] == [
        "r-0",
        "r-1",
        "r-2",
    ]
    assert simulated.client.files.content(batch.input_file_id).read() == content


def test_a_very_long_line_harms_nobody(simulated: Round) -> None:
    long = simulated.line("long", "x" * 5 * MIB)
    batch = simulated.run([simulated.line("a"), long, simulated.line("b")])
    assert batch.status == "completed"
    assert batch.request_counts
    assert batch.request_counts.completed == 3


@pytest.mark.parametrize("depth", [500, 5_000])
def test_deep_nesting_is_one_line_s_matter(simulated: Round, depth: int) -> None:
    deep = jsonl([simulated.line("deep", tools="@")])
    deep = deep.replace(b'"@"', b"[" * depth + b"]" * depth)
    content = jsonl([simulated.line("a")]) + deep + jsonl([simulated.line("b")])
    batch = simulated.wait(simulated.submit(content))
    assert batch.status == "completed"
    rows = simulated.rows(batch.output_file_id) + simulated.rows(batch.error_file_id)
    assert {row["custom_id"] for row in rows} == {"a", "deep", "b"}
    assert {"a", "b"} <= {row["custom_id"] for row in simulated.rows(batch.output_file_id)}


def test_bottomless_nesting_is_an_error_not_a_crash(simulated: Round) -> None:
    content = jsonl([simulated.line("a")]) + b"[" * 2_000_000 + b"\n"
    batch = simulated.wait(simulated.submit(content))
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    assert batch.errors.data[0].line == 2


def test_odd_custom_ids_come_back_as_they_were(simulated: Round) -> None:
    ids = ["é🙂\u2028", "../../etc/passwd", " spaces ", 'quo"te\n', "x" * 1000, ""]
    batch = simulated.run([simulated.line(custom_id) for custom_id in ids])
    content = simulated.client.files.content(str(batch.output_file_id)).text
    assert [json.loads(line)["custom_id"] for line in content.splitlines()] == ids


def test_what_the_engine_refuses_is_an_error_line_with_its_own_words(simulated: Round) -> None:
    lines = [
        simulated.line("good"),
        simulated.line("bad", "[[sim:400]]"),
        simulated.line("broken", "[[sim:500]]"),
    ]
    batch = simulated.run(lines)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (3, 1, 2)
    errors = {row["custom_id"]: row for row in simulated.rows(batch.error_file_id)}
    assert errors["bad"]["response"]["status_code"] == 400
    assert errors["bad"]["response"]["body"]["error"]["message"]
    assert errors["broken"]["response"]["status_code"] == 500
    assert batch.usage
    assert batch.usage.total_tokens > 0


def test_streaming_asked_for_inside_a_batch_is_ignored(simulated: Round) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    batch = simulated.run([simulated.line("a", **options)])
    (row,) = simulated.rows(batch.output_file_id)
    assert row["response"]["body"]["object"] == "chat.completion"


@pytest.mark.parametrize(
    "edit", [with_(custom_id="nul\0"), body_with(model="m\0"), with_(url="/v1/\0")]
)
def test_a_nul_where_it_hurts_stops_nothing(simulated: Round, edit: Edit) -> None:
    """Postgres takes no NUL in a text: the read models must go on."""
    line = edit(simulated.line("a"))
    assert simulated.run([line, line]).status == "failed"
    after = simulated.run([simulated.line("next")])
    assert after.status == "completed"
    assert simulated.client.batches.list(limit=1).data[0].id == after.id


def test_an_endpoint_we_cannot_serve_is_refused_at_once(simulated: Round) -> None:
    with pytest.raises(openai.BadRequestError, match="videos"):
        simulated.submit(jsonl([simulated.line("a")]), endpoint="/v1/videos")


def test_wrong_key_and_unknown_ids(simulated: Round) -> None:
    stranger = openai.OpenAI(base_url=simulated.stack.api_url, api_key="sk-no", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.batches.list()
    for attempt in (
        lambda: simulated.client.batches.retrieve("batch_no"),
        lambda: simulated.client.files.retrieve("file-../../x"),
        lambda: simulated.client.files.content("file-no"),
        lambda: simulated.client.batches.cancel("batch_\x00"),
    ):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
            attempt()
    with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
        simulated.client.batches.create(
            input_file_id="file-no", endpoint=ENDPOINT, completion_window="24h"
        )
