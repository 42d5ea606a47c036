"""Lines of batch files and results: nothing is transcoded, nothing breaks a line reader."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batch.batch_file import (
    error_line,
    parse_request,
    request_lines,
    response_line,
    result_id,
)
from vllm_batch.ids import JobId

JOB = JobId("batch_00ff")


def test_blank_lines_and_carriage_returns_are_no_requests() -> None:
    assert list(request_lines(b'\r\n{"a":1}\r\n\n  \n{"b":2}')) == [b'{"a":1}', b'{"b":2}']


def test_a_body_is_passed_on_byte_for_byte() -> None:
    body = b'{"z":1,"seed":123456789012345678901234567890,"a":1.10,"u":"\\u00e9\xc3\xa9"}'
    line = b'{"custom_id":"x","method":"POST","url":"/v1/x","body":' + body + b"}"
    assert bytes(parse_request(line).body) == body


@pytest.mark.parametrize("line", [b"{}", b"[]", b'{"custom_id":1}', b"\xff"])
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        parse_request(line)


def test_pretty_printed_answers_become_one_line_and_keep_their_numbers() -> None:
    line = response_line(
        JOB, 0, 3, custom_id="c", status_code=200, request_id="r",
        body=b'{\n  "big": 123456789012345678901,\r\n  "f": 1.50\n}',
    )  # fmt: skip
    assert line.count(b"\n") == 1
    assert b'{"big":123456789012345678901,"f":1.50}' in line


@given(custom_id=st.text(), message=st.text())
def test_no_line_reader_splits_a_result(custom_id: str, message: str) -> None:
    body = json.dumps({"text": message}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        body.decode()
        custom_id.encode()
    except UnicodeError:
        return  # lone surrogates cannot arrive: files are valid UTF-8
    for line in (
        response_line(JOB, 1, 2, custom_id=custom_id, status_code=200, request_id="r", body=body),
        error_line(JOB, 1, 2, custom_id=custom_id, code="batch_expired", message=message),
    ):
        text = line.decode()
        assert len(text.splitlines()) == 1
        assert json.loads(text)["custom_id"] == custom_id


def test_a_result_keeps_its_id_over_retries_and_shares_it_with_nobody() -> None:
    ids = {result_id(JOB, chunk, index) for chunk in range(40) for index in range(40)}
    assert len(ids) == 1600
    assert result_id(JOB, 1, 2) == result_id(JOB, 1, 2)
