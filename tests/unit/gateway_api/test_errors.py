"""Every error has its place in OpenAI's envelope."""

from __future__ import annotations

import json

import pytest

from batch_gateway.api import errors
from vllm_batch import errors as tree
from vllm_batch.errors import BatchError


def every_error(cls: type[BatchError] = BatchError) -> list[type[BatchError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in every_error(child))]


STATUSES = {
    tree.InvalidInput: 400,
    tree.NotFound: 404,
    tree.Rejected: 409,
    tree.LeaseLost: 409,
    tree.AlreadyDone: 409,
    tree.StorageFull: 507,
    tree.Conflict: 503,
    tree.EventStoreUnavailable: 503,
    tree.ProjectionUnavailable: 503,
    tree.BlobError: 503,
    tree.BlobMissing: 503,
}


@pytest.mark.parametrize(
    "cls", [cls for cls in every_error() if cls.__module__ == "vllm_batch.errors"]
)
def test_every_error_of_the_tree_is_answered(cls: type[BatchError]) -> None:
    answer = errors.response_to(cls("secret detail"))
    assert answer.status_code == STATUSES.get(cls, 500)
    error = json.loads(bytes(answer.body))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    server = answer.status_code >= 500
    assert error["type"] == ("server_error" if server else "invalid_request_error")
    assert ("secret detail" in error["message"]) is not server
    assert ("retry-after" in answer.headers) is (answer.status_code == 503)
    if answer.status_code in {409, 507}:
        assert answer.headers["x-should-retry"] == "false"


def test_a_bug_says_nothing_of_itself() -> None:
    answer = errors.response_to(KeyError("secret detail"))
    assert answer.status_code == 500
    assert b"secret" not in bytes(answer.body)


def test_long_values_are_cut() -> None:
    assert errors.shown("x" * 100) == "x" * 100
    assert len(errors.shown("x" * 4000)) == 101


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "invalid_request_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_exceeded"),
        (503, "server_error"),
    ],
)
def test_the_type_says_whose_fault_it_is(status: int, kind: str) -> None:
    answer = errors.error_response(status, "no")
    assert json.loads(bytes(answer.body))["error"]["type"] == kind
