"""What is wrong with a batch file, with codes, parameters and line numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from batch_gateway.orchestrator.validation import Validator
from vllm_batch.events import LineError
from vllm_batch.settings import Settings

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def deep_stack() -> Iterator[None]:
    """As the orchestrator's main sets it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(11_000)
    yield
    sys.setrecursionlimit(before)


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    """Return a valid line with ``changes``; None takes a key away."""
    fields = {
        "custom_id": custom_id, "method": "POST", "url": CHAT,
        "body": {"model": "m", "messages": []}, **changes,
    }  # fmt: skip
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


class Known:
    """Every model there is, but "unknown"."""

    def resolve(self, name: str) -> str | None:
        return None if name == "unknown" else name

    def known(self) -> list[str]:
        return ["m", "n"]


def validator(**changes: Any) -> Validator:
    endpoint, mixed = changes.pop("endpoint", CHAT), changes.pop("mixed", False)
    return Validator(Settings(**changes), endpoint=endpoint, names=Known(), mixed=mixed)


def check(*blocks: bytes, **changes: Any) -> tuple[Validator, list[tuple[Any, ...]]]:
    found = validator(**changes)
    for block in blocks:
        found.feed(block)
    found.finish()
    return found, [(error.code, error.param, error.line) for error in found.errors]


def file(*lines: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(one + end for one in lines)


INVALID = [
    pytest.param(b'{"custom_id": "b",', "invalid_json_line", None, id="cut short"),
    pytest.param(b"{'custom_id': 'b'}", "invalid_json_line", None, id="single quotes"),
    pytest.param(b"[1, 2]", "invalid_json_line", None, id="an array"),
    pytest.param(b'"text"', "invalid_json_line", None, id="a string"),
    pytest.param(b"null", "invalid_json_line", None, id="null"),
    pytest.param(line("b") + b" {}", "invalid_json_line", None, id="two objects"),
    pytest.param(
        line("b", body={"model": "m", "x": "?"}).replace(b"?", b"\xff"),
        "invalid_json_line", None, id="not UTF-8 in a body",
    ),
    pytest.param(
        line("b?").replace(b"?", b"\xc3\x28"), "invalid_json_line", None, id="not UTF-8 in an id"
    ),
    pytest.param(
        line("b").replace(b'"b"', rb'"\ud800"'), "invalid_json_line", None, id="half a surrogate"
    ),
    pytest.param(
        line("b", body={"model": "m", "x": 0}).replace(b": 0", b": NaN"),
        "invalid_json_line", None, id="NaN",
    ),
    pytest.param(line(None), "missing_required_parameter", "custom_id", id="no custom_id"),
    pytest.param(line("b", method=None), "missing_required_parameter", "method", id="no method"),
    pytest.param(line("b", url=None), "missing_required_parameter", "url", id="no url"),
    pytest.param(line("b", body=None), "missing_required_parameter", "body", id="no body"),
    pytest.param(
        line("b", body={"x": 1}), "missing_required_parameter", "body.model", id="no model"
    ),
    pytest.param(line(7), "invalid_value", "custom_id", id="custom_id a number"),
    pytest.param(line("b", method=["POST"]), "invalid_value", "method", id="method a list"),
    pytest.param(line("b", url={}), "invalid_value", "url", id="url an object"),
    pytest.param(line("b", body="{}"), "invalid_value", "body", id="body a string"),
    pytest.param(line("b", body={"model": 3}), "invalid_value", "body.model", id="model a number"),
    pytest.param(line("a"), "duplicate_custom_id", "custom_id", id="duplicate"),
    pytest.param(line("b", method="GET"), "invalid_method", "method", id="GET"),
    pytest.param(line("b", method="post"), "invalid_method", "method", id="post"),
    pytest.param(line("b", url=EMBEDDINGS), "invalid_url", "url", id="another endpoint"),
    pytest.param(
        line("b", body={"model": "n"}), "mismatched_model", "body.model", id="another model"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "code", "param"), INVALID)
def test_a_bad_line_is_named_and_the_rest_is_read_on(bad: bytes, code: str, param: str) -> None:
    content = file(line("a"), b"", bad, line("c"), line("c"))
    found, errors = check(content)
    assert errors == [(code, param, 3), ("duplicate_custom_id", "custom_id", 5)]
    assert found.error_count == 2
    assert not found.valid


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(file(line("a"), line("b")), id="plain"),
        pytest.param(line("a") + b"\n" + line("b"), id="no newline at the end"),
        pytest.param(file(line("a"), line("b"), end=b"\r\n"), id="CRLF"),
        pytest.param(b"\xef\xbb\xbf" + file(line("a"), line("b")), id="BOM"),
        pytest.param(b"\n\n" + line("a") + b"\n  \t\n\r\n" + line("b") + b"\n\n", id="blank lines"),
        pytest.param(file(b"  " + line("a") + b"  ", line("b")), id="spaces around"),
        pytest.param(file(line("a"), line("")), id="an empty id"),
        pytest.param(file(line("a"), line("../é\u2028 \n" * 50)), id="an odd id"),
        pytest.param(file(line("a"), line("b", extra=[1])), id="an extra key"),
        pytest.param(
            file(
                line("a"), line("b", body={"model": "m", "n": 2**70, "x": 1e300, "é": "\U0001f600"})
            ),
            id="large numbers",
        ),
    ],
)
def test_a_good_file_is_accepted(content: bytes) -> None:
    found, errors = check(content)
    assert errors == []
    assert found.valid
    assert (found.count, found.models) == (2, {"m": 0})


def test_raw_utf8_is_fine() -> None:
    raw = json.dumps({"custom_id": "ü😀", "method": "POST", "url": CHAT, "body": {"model": "m"}},
                     ensure_ascii=False)  # fmt: skip
    found, errors = check(raw.encode() + b"\n")
    assert (found.count, errors) == (1, [])


def test_every_problem_of_a_line_is_told() -> None:
    _, errors = check(file(line("a"), line(3, method="PUT", url="/x", body={})))
    assert errors == [
        ("invalid_value", "custom_id", 2),
        ("invalid_method", "method", 2),
        ("invalid_url", "url", 2),
        ("missing_required_parameter", "body.model", 2),
    ]


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\t\n"])
def test_a_file_without_requests_is_empty(content: bytes) -> None:
    _, errors = check(content)
    assert errors == [("empty_file", None, None)]


def test_several_models_are_told_apart_where_the_batch_may_mix_them() -> None:
    lines = [line(str(n), body={"model": model}) for n, model in enumerate("abba")]
    found, errors = check(file(*lines), mixed=True)
    assert errors == []
    assert found.models == {"a": 0, "b": 1}
    assert list(found.index.models) == [0, 1, 1, 0]


def test_every_unknown_model_of_a_mixed_file_is_reported_once() -> None:
    models = ("m", "unknown", "n", "unknown")
    lines = [line(str(n), body={"model": model}) for n, model in enumerate(models)]
    found, errors = check(file(*lines), mixed=True)
    assert errors == [("model_not_found", "body.model", 2)]
    assert "'m', 'n'" in found.errors[0].message


def test_more_models_than_a_batch_may_mix_are_an_error() -> None:
    lines = [line(str(n), body={"model": model}) for n, model in enumerate("abca")]
    _, errors = check(file(*lines), mixed=True, batch_models_max=2)
    assert errors == [("mismatched_model", "body.model", 3)]


def test_an_unknown_model_is_reported_once() -> None:
    lines = [line(str(n), body={"model": "unknown"}) for n in range(3)]
    _, errors = check(file(*lines))
    assert errors == [("model_not_found", "body.model", 1)]


def test_too_many_requests_end_the_reading() -> None:
    found, errors = check(file(*(line(str(n)) for n in range(5))), batch_requests_max=3)
    assert errors == [("too_many_tasks", None, None)]
    assert found.full


def test_exactly_as_many_requests_as_allowed_are_fine() -> None:
    _, errors = check(file(*(line(str(n)) for n in range(3)), b"", b""), batch_requests_max=3)
    assert errors == []


def test_only_the_first_errors_are_listed_but_all_are_counted() -> None:
    found, errors = check(file(*([b"{"] * 150)), file(b"{", b"{"))
    assert found.error_count == 152
    assert [at for _, _, at in errors] == list(range(1, 101))


def test_line_numbers_go_on_over_blocks() -> None:
    _, errors = check(file(line("a"), b"", line("b")), file(b"", line("a")), b"nothing")
    assert [at for _, _, at in errors] == [5, 6]


def test_a_line_too_long_to_be_read_is_an_error_of_its_line() -> None:
    found = validator(request_bytes_max=2000)
    found.feed(file(line("a")))
    found.skip_long_line(5000)
    found.feed(file(b"x" * 2001, line("a")))
    found.finish()
    assert [(error.code, error.line) for error in found.errors] == [
        ("invalid_value", 2),
        ("invalid_value", 3),
        ("duplicate_custom_id", 4),
    ]


def test_long_ids_are_told_apart_too() -> None:
    long = ["x" * 1000 + end for end in "abcab"]
    _, errors = check(file(*(line(custom_id) for custom_id in long)))
    assert [(code, at) for code, _, at in errors] == [
        ("duplicate_custom_id", 4),
        ("duplicate_custom_id", 5),
    ]


def nested(depth: int) -> bytes:
    return line("deep", body={"model": "m", "x": 0}).replace(
        b": 0", b": " + b"[" * depth + b"]" * depth
    )


@pytest.mark.usefixtures("deep_stack")
def test_nesting_as_deep_as_is_allowed_passes_and_deeper_is_an_error() -> None:
    _, errors = check(file(line("a"), nested(5_000), line("b")))
    assert errors == []
    _, errors = check(file(line("a"), nested(100_000), line("a")))
    assert errors == [("invalid_json_line", None, 2), ("duplicate_custom_id", "custom_id", 3)]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("text", 1),
        (["a", "b", "c"], 3),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
        ([], 1),
        (None, 1),
        (5, 1),
    ],
)
def test_embedding_inputs_are_counted(given: Any, inputs: int) -> None:
    body = {"model": "m", "input": given}
    content = file(*(line(str(n), url=EMBEDDINGS, body=body) for n in range(2)))
    _, errors = check(content, endpoint=EMBEDDINGS, embedding_inputs_max=2 * inputs)
    assert errors == []
    if inputs > 1:
        _, errors = check(content, endpoint=EMBEDDINGS, embedding_inputs_max=2 * inputs - 1)
        assert errors == [("too_many_tasks", None, None)]


def test_messages_show_users_text_quoted_and_bounded() -> None:
    found, _ = check(file(line("a"), line("b", url="x\n" * 500)))
    (error,) = found.errors
    assert isinstance(error, LineError)
    assert "\n" not in error.message
    assert len(error.message) < 400
