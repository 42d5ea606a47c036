"""Following events over HTTP: what a key sees, from where, and how a reader goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from tests.gateway_bench import Gateway
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vllm_batch import api_keys, ids
from vllm_batch.events import FileDeleted, FileUploaded
from vllm_batch.ids import FileId, ProjectId

WAIT_SECONDS = 60.0


async def make_file(api: Gateway, project: str) -> tuple[FileId, int]:
    """Record an uploaded file and its deletion; return its id and the first sequence."""
    file_id = ids.new_file_id()
    async with api.store() as store:
        uploaded = await store.append(
            FileUploaded(
                file_id=file_id, project=ProjectId(project), filename="a.jsonl", purpose="batch",
                bytes=1, lines=1, sha256="0" * 64, blob=f"files/{file_id}",
            ),
            expected=0,
        )  # fmt: skip
        await store.append(FileDeleted(file_id=file_id, reason="requested"), expected=uploaded.seq)
    return file_id, uploaded.seq


async def read(lines: AsyncIterator[str], count: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the next ``count`` events: the id of each, and its data."""
    found: list[tuple[str, dict[str, Any]]] = []
    last_id = ""
    async with asyncio.timeout(WAIT_SECONDS):
        async for line in lines:
            if line.startswith("id: "):
                last_id = line[4:]
            elif line.startswith("data: "):
                found.append((last_id, json.loads(line[6:])))
                if len(found) == count:
                    return found
    raise AssertionError(f"the stream ended after {found}")


async def test_a_key_sees_its_own_projects_events_only(api: Gateway) -> None:
    mine, theirs = ids.new("project_"), ids.new("project_")
    key = await api.new_key(mine)
    _, start = await make_file(api, theirs)
    file_id, _ = await make_file(api, mine)
    async with (
        api.http(key) as http,
        http.stream("GET", "/events", params={"from": str(start)}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [event for _, event in await read(answer.aiter_lines(), 2)]
    assert [(e["type"], e["data"]["file_id"]) for e in events] == [
        ("file.uploaded", file_id), ("file.deleted", file_id),
    ]  # fmt: skip
    assert {e["specversion"] for e in events} == {"1.0"}


async def test_who_follows_hears_no_more_once_the_key_is_revoked(api: Gateway) -> None:
    project = ids.new("project_")
    key, other = await api.new_key(project), await api.new_key(project)
    _, start = await make_file(api, project)
    query = {"types": "file.*", "from": str(start)}
    async with (
        api.http(key) as http,
        http.stream("GET", "/events", params=query) as answer,
        websocket(api, key, f"types=file.*&from={start}") as socket,
        api.http(other) as http2,
        http2.stream("GET", "/events", params=query) as kept,
    ):
        heard, lines = answer.aiter_lines(), kept.aiter_lines()
        await read(heard, 2)
        await read(lines, 2)
        for _ in range(2):
            await socket.recv()
        await api.revoke(key)
        later, _ = await make_file(api, project)
        assert (await read(lines, 1))[0][1]["data"]["file_id"] == later
        with pytest.raises(AssertionError, match="the stream ended"):
            await read(heard, 1)
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(WAIT_SECONDS):
                await socket.recv()


async def test_a_reader_goes_on_after_the_last_event_it_had(api: Gateway) -> None:
    project = ids.new("project_")
    key = await api.new_key(project)
    file_id, start = await make_file(api, project)
    later, _ = await make_file(api, project)
    async with api.http(key) as http:
        query = {"types": "file.uploaded", "from": str(start)}
        async with http.stream("GET", "/events", params=query) as answer:
            [(last_id, first)] = await read(answer.aiter_lines(), 1)
        assert first["data"]["file_id"] == file_id
        assert first["sequence"] == last_id == str(start)
        headers = {"last-event-id": last_id}
        async with http.stream("GET", "/events", params=query, headers=headers) as answer:
            [(_, second)] = await read(answer.aiter_lines(), 1)
    assert second["data"]["file_id"] == later


async def test_the_scope_admin_sees_every_noun(api: Gateway) -> None:
    async with api.store() as store:
        start = await store.last_sequence() + 1
        _, secret = await api_keys.create(store, project="default", scopes=[api_keys.ADMIN])
    await api.wait_until_known(secret)
    await make_file(api, ids.new("project_"))
    async with (
        api.http(secret) as http,
        http.stream("GET", "/events", params={"from": str(start)}) as answer,
    ):
        events = [event for _, event in await read(answer.aiter_lines(), 3)]
    assert [event["type"] for event in events] == [
        "apikey.created", "file.uploaded", "file.deleted",
    ]  # fmt: skip
    assert "sha256" not in events[0]["data"]
    assert events[0]["data"]["project"] == "default"


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"types": "job.dreamt"}, 400, "types"),
        ({"types": "worker.*"}, 403, None),
        ({"from": "yesterday"}, 400, "from"),
        ({"from": "9" * 30}, 400, "from"),
    ],
)
async def test_what_cannot_be_followed_is_said(
    http: httpx2.AsyncClient, query: dict[str, str], status: int, param: str | None
) -> None:
    answer = await http.get("/events", params=query)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


async def test_the_catalogue_is_served(http: httpx2.AsyncClient) -> None:
    document = (await http.get("/events/asyncapi")).json()
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["JobCompleted"]["address"] == "job.completed.{job_id}"


@asynccontextmanager
async def websocket(api: Gateway, key: str, query: str) -> AsyncIterator[ClientConnection]:
    url = api.url.replace("http://", "ws://") + f"/events?{query}"
    headers = {"authorization": f"Bearer {key}"}
    async with connect(url, additional_headers=headers, open_timeout=WAIT_SECONDS) as socket:
        yield socket


async def test_a_websocket_brings_the_same_events(api: Gateway) -> None:
    project = ids.new("project_")
    key = await api.new_key(project)
    file_id, start = await make_file(api, project)
    async with (
        asyncio.timeout(WAIT_SECONDS),
        websocket(api, key, f"types=file.*&from={start}") as socket,
    ):
        before = [json.loads(await socket.recv()) for _ in range(2)]
        later, _ = await make_file(api, project)
        after = json.loads(await socket.recv())
    assert [event["data"]["file_id"] for event in before] == [file_id, file_id]
    assert after["data"]["file_id"] == later


@pytest.mark.parametrize("path", ["events", "events?types=file.*"])
async def test_a_key_without_the_scope_follows_nothing_in_either_way(
    api: Gateway, path: str
) -> None:
    async with api.store() as store:
        _, secret = await api_keys.create(store, project="p", scopes=["inference"])
    await api.wait_until_known(secret)
    async with api.http(secret) as http:
        refused = await http.get(f"/{path}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        403, "insufficient_permissions"
    )  # fmt: skip
    with pytest.raises(InvalidStatus) as denied:
        async with websocket(api, secret, path.partition("?")[2]):
            pass
    assert denied.value.response.status_code == 403
    assert json.loads(denied.value.response.body) == refused.json()


@pytest.mark.parametrize(("key", "status"), [("wrong", 401), (None, 400)])
async def test_a_refused_websocket_gets_the_envelope(
    api: Gateway, key: str | None, status: int
) -> None:
    opened = websocket(api, key or await api.new_key(), "types=job.dreamt")
    with pytest.raises(InvalidStatus) as refused:
        async with opened:
            pass
    assert refused.value.response.status_code == status
    assert "error" in json.loads(refused.value.response.body)
