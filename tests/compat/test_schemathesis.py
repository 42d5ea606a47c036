"""The OpenAPI document, used by a machine that tries what people would not: no answer is a 5xx.

Where nobody serves a model, or no worker is there, 503 and 504 with the envelope are the right
answers, and only there.
"""

from __future__ import annotations

import asyncio

import hypothesis
import pytest
import requests
import schemathesis
from tests.gateway_bench import Gateway

from vllm_batch import api_keys

EXAMPLES_MAX = 12
SECONDS = 20.0
_UNAVAILABLE = {503, 504}
_NEEDS_A_WORKER = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/inference",
    "/v1/webhooks/label-studio", "/admin/workers", "/admin/labeling", "/admin/models",
)  # fmt: skip
_ENDLESS = ("/v1/events", "/v1/batches/{batch_id}/events", "/v1/batches/{batch_id}/results")


@pytest.fixture(scope="session")
def secret(api: Gateway) -> str:
    """A key that opens everything, of a project of its own."""

    async def make() -> str:
        async with api.store() as store:
            _, made = await api_keys.create(store, project="machine", scopes=[api_keys.ADMIN])
        await api.wait_until_known(made)
        return made

    return asyncio.run(make())


def test_no_call_of_the_document_is_answered_with_a_5xx(api: Gateway, secret: str) -> None:
    root = api.url.removesuffix("/v1")
    document = requests.get(f"{root}/openapi.json", timeout=SECONDS).json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=root)
    tried: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in _ENDLESS:
            continue
        tried.append(operation.label)
        _try(operation, secret)
    assert len(tried) > 30


def _try(operation: schemathesis.APIOperation, secret: str) -> None:
    @hypothesis.seed(20_260_101)
    @hypothesis.settings(
        max_examples=EXAMPLES_MAX,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy())
    def call(case: schemathesis.Case) -> None:
        answer = case.call(headers={"authorization": f"Bearer {secret}"}, timeout=SECONDS)
        allowed = _UNAVAILABLE if operation.path.startswith(_NEEDS_A_WORKER) else set()
        said = f"{operation.label}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500 or answer.status_code in allowed, said
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, said

    call()
