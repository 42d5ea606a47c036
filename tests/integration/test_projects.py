"""Tenants: what each may use, and the end of one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import openai
import pytest
from tests.facts import append
from tests.gateway_bench import Gateway
from tests.integration.test_api_cli import Answer
from tests.integration.test_usage import registered
from tests.online_bench import second_gateway

from vllm_batch import api_keys, ids
from vllm_batch.cli.output import ExitCode
from vllm_batch.event_store import EventStore
from vllm_batch.events import Event, Recorded, UploadCancelled, Usage
from vllm_batch.events.project import ProjectBudgetReached, ProjectPurged
from vllm_batch.events.usage import UsageRecorded
from vllm_batch.events.webhook import WebhookEndpointDeleted
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects

WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    overrides = {
        "leader_lease_seconds": 1.0,
        "simulated_latency_seconds": 0.05,
        "budget_check_seconds": 0.1,
        "read_your_writes_seconds": 60.0,
        "read_models_answer_seconds": 20.0,
    }
    home = tmp_path_factory.mktemp("projects") / "stack"
    with LocalStack(home, settings_overrides=overrides) as stack:
        yield Gateway(stack)


@pytest.fixture
async def admin(api: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with api.store() as store:
        _, secret = await api_keys.create(store, project="admins", scopes=[api_keys.ADMIN])
    await api.wait_until_known(secret)
    headers = {"authorization": f"Bearer {secret}"}
    url = api.url.removesuffix("/v1")
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20) as http:
        yield http


def lines(api: Gateway, count: int, prompt: str = "Hello") -> bytes:
    body = {"model": api.stack.model_name, "prompt": prompt}
    return "\n".join(
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": body})
        for n in range(count)
    ).encode()


async def limit(admin: httpx2.AsyncClient, project: str, **limits: object) -> dict[str, object]:
    answer = await admin.put(f"/admin/projects/{project}/limits", json=limits)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


async def early_in_a_minute() -> None:
    """Wait until the clock's minute is young: the windows of rate limits begin with one."""
    if (passed := time.time() % 60) > 30:
        await asyncio.sleep(60 - passed)


async def test_calls_per_minute(api: Gateway, admin: httpx2.AsyncClient) -> None:
    project = ids.new("p")
    key = await api.new_key(project)
    assert (await limit(admin, project, requests_per_minute=2))["requests_per_minute"] == 2
    await early_in_a_minute()
    async with api.http(key) as http, asyncio.timeout(WAIT_SECONDS):
        answers = [await http.post("/batches", json={}) for _ in range(3)]
        assert [a.status_code for a in answers] == [400, 400, 429]
        answer = answers[-1]
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await http.get("/batches")).status_code == 200  # looking is free
    async with api.http(await api.new_key()) as other:
        assert (await other.post("/batches", json={})).status_code == 400


async def test_two_gateways_allow_no_more_than_one(api: Gateway, admin: httpx2.AsyncClient) -> None:
    project = ids.new("p")
    key = await api.new_key(project)
    await limit(admin, project, requests_per_minute=20)
    second = second_gateway(api.stack)
    second.wait_ready()
    try:
        urls = [api.url, f"http://127.0.0.1:{second.status.port}/v1"]
        headers = {"authorization": f"Bearer {key}"}
        statuses = []
        async with httpx2.AsyncClient(headers=headers, timeout=WAIT_SECONDS) as http:
            for url in urls:
                async with asyncio.timeout(WAIT_SECONDS):
                    while (await http.get(f"{url}/batches")).status_code != 200:
                        await asyncio.sleep(0.02)
            await early_in_a_minute()
            for call in range(40):
                answer = await http.post(f"{urls[call % 2]}/batches", json={})
                statuses.append(answer.status_code)
                await asyncio.sleep(0.02)  # so that what one let in reaches the other
        assert 20 <= statuses.count(400) < 30  # each alone would have let in all 40
        assert statuses[-1] == 429
    finally:
        second.hold()


@pytest.mark.parametrize("leaves", [False, True])
async def test_tokens_per_minute_of_a_stream_that_says_nothing_of_them(
    api: Gateway, admin: httpx2.AsyncClient, leaves: bool
) -> None:
    project = ids.new("p")
    key = await api.new_key(project)
    await limit(admin, project, tokens_per_minute=3)
    body = {"model": api.stack.model_name, "prompt": "[[sim:sleep=1]] Hello", "stream": True}
    await early_in_a_minute()
    async with api.http(key) as http:
        async with http.stream("POST", "/completions", json=body) as answer:
            assert answer.status_code == 200
            events = []
            async for line in answer.aiter_lines():
                events += [line] if line.startswith("data: ") else []
                if leaves and len(events) == 5:
                    break
        if not leaves:
            assert events[-1] == "data: [DONE]"
            assert "usage" not in "".join(events)
        async with asyncio.timeout(WAIT_SECONDS):
            while (
                answer := await http.post("/completions", json=body | {"stream": False})
            ).is_success:
                await asyncio.sleep(0.02)
        assert answer.status_code == 429
        assert answer.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_stored_bytes(api: Gateway, admin: httpx2.AsyncClient) -> None:
    project = ids.new("p")
    content = lines(api, 3)
    await limit(admin, project, storage_bytes_max=2 * len(content) + 10)
    async with api.async_client(await api.new_key(project)) as client:
        first = await client.files.create(file=("a.jsonl", content), purpose="batch")
        await client.files.create(file=("b.jsonl", content), purpose="batch")
        with pytest.raises(openai.RateLimitError, match="bytes") as refused:
            await client.files.create(file=("c.jsonl", content), purpose="batch")
        assert refused.value.code == "insufficient_quota"
        assert len((await client.files.list()).data) == 2
        await client.files.delete(first.id)
        await client.files.create(file=("c.jsonl", content), purpose="batch")
    use = (await admin.get(f"/admin/projects/{project}")).json()["use"]
    assert use["storage_bytes"] == 2 * len(content)


async def test_stored_bytes_of_calls_at_once_and_of_uploads_in_parts(
    api: Gateway, admin: httpx2.AsyncClient
) -> None:
    """What is left of a quota is given to one call, however many ask for it together."""
    project = ids.new("p")
    content = lines(api, 30)
    await limit(admin, project, storage_bytes_max=3 * len(content) + 10)
    async with api.async_client(await api.new_key(project), max_retries=0) as client:

        async def in_one() -> None:
            await client.files.create(file=("a.jsonl", content), purpose="batch")

        async def in_parts() -> None:
            upload = await client.uploads.create(
                bytes=len(content), filename="b.jsonl", mime_type="text/jsonl", purpose="batch"
            )
            part = await client.uploads.parts.create(upload_id=upload.id, data=content)
            await client.uploads.complete(upload_id=upload.id, part_ids=[part.id])

        calls = [call() for call in (in_one, in_parts) * 5]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert len(refused) == 7
        assert {type(outcome) for outcome in refused} == {openai.RateLimitError}
        assert len((await client.files.list()).data) == 3
    kept = {path.name for path in (Path(api.stack.home.root) / "blobs" / "files").iterdir()}
    async with api.store() as store:
        known = {recorded.event.aggregate_id()[0] for recorded in await everything(store)}
    assert kept <= known  # nothing is left of what was refused


async def test_what_open_uploads_declare_is_kept_free_for_them(
    api: Gateway, admin: httpx2.AsyncClient
) -> None:
    project = ids.new("p")
    content = lines(api, 3)
    await limit(admin, project, storage_bytes_max=2 * len(content))
    async with api.async_client(await api.new_key(project), max_retries=0) as client:

        async def opened() -> str:
            upload = await client.uploads.create(
                bytes=len(content), filename="b.jsonl", mime_type="text/jsonl", purpose="batch"
            )
            return upload.id

        first, second = await opened(), await opened()
        with pytest.raises(openai.RateLimitError, match="in open uploads"):
            await opened()
        with pytest.raises(openai.RateLimitError, match="in open uploads"):
            await client.files.create(file=("a.jsonl", content), purpose="batch")
        await client.uploads.cancel(first)
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                with suppress(openai.RateLimitError):  # the cancel comes back from the log
                    await client.files.create(file=("a.jsonl", content), purpose="batch")
                    break
        part = await client.uploads.parts.create(upload_id=second, data=content)
        assert (await client.uploads.complete(upload_id=second, part_ids=[part.id])).file


async def everything(store: EventStore) -> list[Recorded]:
    found: list[Recorded] = []
    async for batch in store.read(subjects.ALL_FILES):
        found += batch
    return found


async def test_requests_in_line_of_calls_at_once(api: Gateway, admin: httpx2.AsyncClient) -> None:
    project = ids.new("p")
    await limit(admin, project, queued_requests_max=10)
    async with api.async_client(await api.new_key(project), max_retries=0) as client:
        file = await client.files.create(
            file=("a.jsonl", lines(api, 4, "[[sim:sleep=30]]")), purpose="batch"
        )
        calls = [
            client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
            for _ in range(8)
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        made = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(made) == 2
        for batch in made:
            await client.batches.cancel(batch.id)


async def test_requests_in_unfinished_batches(api: Gateway, admin: httpx2.AsyncClient) -> None:
    project = ids.new("p")
    await limit(admin, project, queued_requests_max=10)
    async with api.async_client(await api.new_key(project)) as client:
        slow = await client.files.create(
            file=("a.jsonl", lines(api, 8, "[[sim:sleep=30]]")), purpose="batch"
        )
        batch = await client.batches.create(
            input_file_id=slow.id, endpoint="/v1/completions", completion_window="24h"
        )
        with pytest.raises(openai.RateLimitError, match="unfinished") as refused:
            await client.batches.create(
                input_file_id=slow.id, endpoint="/v1/completions", completion_window="24h"
            )
        assert refused.value.code == "queue_limit_exceeded"
        await client.batches.cancel(batch.id)
        await ended(client, batch.id)
        quick = await client.files.create(file=("b.jsonl", lines(api, 8)), purpose="batch")
        await client.batches.create(
            input_file_id=quick.id, endpoint="/v1/completions", completion_window="24h"
        )


async def ended(client: openai.AsyncOpenAI, batch: str) -> str:
    async with asyncio.timeout(WAIT_SECONDS):
        while (found := await client.batches.retrieve(batch)).status not in {
            "completed", "cancelled", "failed", "expired",
        }:  # fmt: skip
            await asyncio.sleep(0.02)
    return found.status


async def test_a_purged_project_leaves_no_content(api: Gateway, admin: httpx2.AsyncClient) -> None:
    project = ids.new("p")
    key = await api.new_key(project)
    marker = ids.new("personal_")
    async with api.async_client(key) as client:
        upload = await client.uploads.create(
            bytes=1000, filename="c.jsonl", mime_type="text/jsonl", purpose="batch"
        )
        await client.uploads.parts.create(upload_id=upload.id, data=marker.encode())
        endpoint = await client.webhooks.create(
            name="n", url="https://example.com/x", event_types=["batch.cancelled"]
        )
        file = await client.files.create(
            file=("a.jsonl", lines(api, 3, f"{marker} [[sim:sleep=20]]")), purpose="batch"
        )
        await client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        done = await client.files.create(file=("b.jsonl", lines(api, 3, marker)), purpose="batch")
        batch = await client.batches.create(
            input_file_id=done.id, endpoint="/v1/completions", completion_window="24h"
        )
        await ended(client, batch.id)
    assert (await admin.delete(f"/admin/projects/{project}")).json()["closed"]
    async with api.http(key) as http, asyncio.timeout(WAIT_SECONDS):
        while (answer := await http.get("/batches")).status_code not in {401, 403}:
            await asyncio.sleep(0.02)
    assert answer.json()["error"]["code"] in {"project_closed", "invalid_api_key"}
    purged = await purged_event(api, project)
    # Two inputs, an output, and the error file of the batch that was cancelled.
    assert (purged.files, purged.batches) == (4, 2)
    async with asyncio.timeout(WAIT_SECONDS):  # the read models are some milliseconds behind
        while (await admin.get(f"/admin/projects/{project}")).json()["use"]["files"]:
            await asyncio.sleep(0.02)
    use = (await admin.get(f"/admin/projects/{project}")).json()["use"]
    assert (use["storage_bytes"], use["queued_requests"]) == (0, 0)
    blobs = Path(api.stack.home.root) / "blobs"
    for folder in ("segments", "files"):  # at once; parts of uploads are kept for a minute
        deadline = time.monotonic() + WAIT_SECONDS
        while holds(blobs / folder, marker.encode()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert not (blobs / "segments" / batch.id).exists()
    async with api.store() as store:
        assert isinstance(await last_of(store, "upload", upload.id), UploadCancelled)
        gone = await last_of(store, "webhook", endpoint.id)
        assert isinstance(gone, WebhookEndpointDeleted)
        assert gone.requested_by == purged.requested_by
    assert (await admin.delete("/admin/projects/nobody")).status_code == 404


def holds(folder: Path, marker: bytes) -> bool:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # deleted just now
            if marker in path.read_bytes():
                return True
    return False


async def last_of(store: EventStore, noun: str, name: str) -> Event:
    found: list[Recorded] = []
    async for batch in store.read(subjects.aggregate(noun, name)):
        found += batch
    return found[-1].event


async def purged_event(api: Gateway, project: str) -> ProjectPurged:
    async with api.store() as store, asyncio.timeout(WAIT_SECONDS):
        async for batch in store.follow([subjects.every(ProjectPurged)]):
            for recorded in batch:
                if isinstance(recorded.event, ProjectPurged) and recorded.event.project == project:
                    return recorded.event
    raise AssertionError("the log ended")


async def test_a_budget_warns_and_stops(api: Gateway, admin: httpx2.AsyncClient) -> None:
    project = ids.new("p")
    key = await api.new_key(project)
    await limit(admin, project, budget_per_month=10.0, budget_stops=True)
    await spend(api, project, 1, tokens=8_500_000)
    assert (await budget_event(api, project, 1)).share == 0.8
    async with api.http(key) as http:
        assert (await http.post("/batches", json={})).status_code == 400  # warned, not stopped
        assert (await admin.get(f"/admin/projects/{project}")).json()["budget_reached"] == 0.8
        assert "10 (80% used)" in Answer(api.stack, "project", "list").out
        await spend(api, project, 2, tokens=2_000_000)
        reached = await budget_event(api, project, 2)
        assert (reached.share, reached.budget) == (1.0, 10.0)
        assert reached.spent == pytest.approx(10.5)
        async with asyncio.timeout(WAIT_SECONDS):
            while (answer := await http.post("/batches", json={})).status_code != 429:
                await asyncio.sleep(0.02)
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert (await http.get("/batches")).status_code == 200
        await limit(admin, project, budget_per_month=100.0, budget_stops=True)
        assert (await http.post("/batches", json={})).status_code == 400


async def spend(api: Gateway, project: str, number: int, *, tokens: int) -> None:
    """Record online usage of a model whose input costs 1 per million."""
    async with api.store() as store:
        await append(store, registered((1.0, 1.0)))
        await append(
            store,
            UsageRecorded(
                meter_id=ids.new("meter_"), number=number, project=ProjectId(project),
                key_id=KeyId("key_1"), model="m", requests=1, failed=0, usage=Usage(tokens),
            ),
        )  # fmt: skip


async def budget_event(api: Gateway, project: str, count: int) -> ProjectBudgetReached:
    found: list[ProjectBudgetReached] = []
    async with api.store() as store, asyncio.timeout(WAIT_SECONDS):
        async for batch in store.follow([subjects.every(ProjectBudgetReached)]):
            for recorded in batch:
                event = recorded.event
                if isinstance(event, ProjectBudgetReached) and event.project == project:
                    found.append(event)
                    if len(found) == count:
                        return event
    raise AssertionError("the log ended")


async def test_the_commands(api: Gateway) -> None:
    project = ids.new("p")
    await api.new_key(project)

    def said(*arguments: str) -> Answer:
        return Answer(api.stack, "project", *arguments)

    assert said("limit", project, "--requests-per-minute", "7", "--stop").code is ExitCode.DONE
    changed = json.loads(said("limit", project, "--tokens-per-minute", "9", "--json").out)
    assert (changed["requests_per_minute"], changed["tokens_per_minute"]) == (7, 9)
    assert changed["budget_stops"] is True
    changed = json.loads(said("limit", project, "--reset", "--stop", "--json").out)
    assert (changed["requests_per_minute"], changed["tokens_per_minute"]) == (0, 0)
    said("limit", project, "--requests-per-minute", "7")
    table = said("limit", project).out  # nothing given: only shown
    assert "requests_per_minute" in table
    listed = {row["project"]: row for row in json.loads(said("list", "--json").out)}
    assert listed[project]["requests_per_minute"] == 7
    assert listed[project]["budget_stops"] is True
    assert listed[project]["batches"] == 0
    assert project in said("list").out
    assert said("purge", "nobody", "--yes").code is ExitCode.NOT_FOUND
    assert said("purge", project).code is not ExitCode.DONE  # nobody said yes
    assert said("purge", project, "--yes").code is ExitCode.DONE
    assert (await purged_event(api, project)).batches == 0
    assert f"{project} (closed)" in said("list").out


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"storage_bytes_max": "much"}, "storage_bytes_max"),
        ({"budget_per_month": True}, "budget_per_month"),
        ({"budget_per_month": -1.0}, "budget_per_month"),
        ({"budget_stops": 1}, "budget_stops"),
    ],
)
async def test_wrong_limits_are_refused(
    admin: httpx2.AsyncClient, limits: dict[str, object], param: str
) -> None:
    answer = await admin.put("/admin/projects/some/limits", json=limits)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
