"""A clone is asked for as its batch was, with the only key there is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock

import httpx
import msgspec
import pytest
from pydantic import SecretStr
from tests.facts import append, submitted
from tests.unit.admin_ui.conftest import Shown

from batch_admin import new_batch
from batch_admin.pages.batch import BatchHead
from batch_admin.services import Services
from vllm_batch import api_keys
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.errors import NotFound
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.ids import FileId, JobId, KeyId, ProjectId
from vllm_batch.projections.rows import ApiKeyRow, BatchRow

JOB = JobId("batch_1")


async def test_a_clone_has_all_that_the_batch_was_given() -> None:
    asked: list[object] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(msgspec.json.decode(request.content))
        return httpx.Response(200, json={"id": "batch_2"})

    store = MemoryEventStore()
    made = submitted(JOB, metadata={"team": "search"})
    made = msgspec.structs.replace(made, priority=-7, output_expires_after_seconds=3600)
    await append(store, made)
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as gateway:
        services = cast(Services, SimpleNamespace(gateway=gateway, store=store))
        assert await new_batch.clone(services, JOB) == "batch_2"
        with pytest.raises(NotFound):
            await new_batch.clone(services, JobId("batch_of_nobody"))
    assert asked == [
        {
            "input_file_id": "file-in", "endpoint": "/v1/chat/completions",
            "completion_window": "24h", "metadata": {"team": "search"}, "priority": -7,
            "output_expires_after": {"anchor": "created_at", "seconds": 3600},
        }
    ]  # fmt: skip


async def test_the_project_of_the_services_key_is_known_by_its_digest() -> None:
    key = ApiKeyRow(
        seq=1, key_id=KeyId("key_1"), project=ProjectId("search"), name="ui", prefix="sk",
        sha256=api_keys.digest("sk-ours"), created_at=1, scopes=[],
    )  # fmt: skip
    reads = SimpleNamespace(api_keys=AsyncMock(return_value=[key]))
    for secret, project in (("sk-ours", "search"), ("sk-unknown", None)):
        settings = SimpleNamespace(gateway_api_key=SecretStr(secret))
        services = cast(Services, SimpleNamespace(settings=settings, reads=reads))
        assert await new_batch.own_project(services) == project


@pytest.mark.parametrize(("own", "enabled"), [("default", True), (None, True), ("search", False)])
async def test_what_cannot_be_cloned_here_says_so(
    shown: Shown, own: str | None, enabled: bool
) -> None:
    row = BatchRow(
        seq=1, job_id=JOB, project=ProjectId("default"), status=JobStatus.COMPLETED,
        endpoint="/v1/chat/completions", input_file_id=FileId("file-in"),
        completion_window="24h", created_at=1, expires_at=86_401,
    )  # fmt: skip
    with shown.view._client:
        head = BatchHead(shown.view, row)
        head.say_whose_are_cloned(ProjectId(own) if own else None)
    assert head._clone is not None
    assert head._clone.enabled == enabled
