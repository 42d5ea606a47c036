"""Results and events of a batch while it runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from tests.compat.test_batches import create, ending, planned, progress
from tests.facts import append
from tests.gateway_bench import Gateway

from vllm_batch import ids, segments
from vllm_batch.blobs import open_blobs
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    ChunkCompleted,
    ChunkLeased,
    ChunkProgressed,
    JobCompleted,
    JobFinalizing,
    JobStarted,
    Segment,
)
from vllm_batch.ids import FileId, JobId, WorkerId
from vllm_batch.segments import Result


class Work:
    """A worker's hands on a batch of one chunk of 6 requests."""

    def __init__(self, api: Gateway, store: JetStreamEventStore, batch_id: str) -> None:
        self.job = JobId(batch_id)
        self._blobs = open_blobs(api.settings.blob_url)
        self._store = store
        self._done = 0
        self._segments = 0

    async def start(self) -> None:
        await append(
            self._store,
            planned(self.job, 0, count=6),
            JobStarted(job_id=self.job, total=6, chunks=1, model="m"),
            ChunkLeased(job_id=self.job, chunk=0, epoch=1, worker_id=WorkerId("w")),
        )

    async def finish(self, *numbers: int, last: bool = False) -> None:
        """Hand in results as one segment."""
        key = segments.segment_key(self.job, 0, 1, self._segments)
        data = segments.encode_segment([Result(n, False, line(n)) for n in numbers])
        await self._blobs.put(key, data)
        self._segments += 1
        self._done += len(numbers)
        cls = ChunkCompleted if last else ChunkProgressed
        event = progress(cls, self.job, self._done, 0)
        segment = Segment(key, len(data), len(numbers), 0)
        await append(self._store, type(event)(**{**_fields(event), "segment": segment}))

    async def end(self) -> None:
        await append(
            self._store,
            JobFinalizing(job_id=self.job, outcome="completed"),
            ending(JobCompleted, self.job, total=6, completed=6, failed=0,
                   output_file_id=FileId("file-out")),
        )  # fmt: skip

    async def purge(self) -> None:
        await self._blobs.delete_all(segments.segments_prefix(self.job))


def _fields(event: object) -> dict[str, object]:
    return {name: getattr(event, name) for name in event.__struct_fields__}  # type: ignore[attr-defined]


def line(number: int) -> bytes:
    return json.dumps({"custom_id": f"r{number} \u2028"}).encode() + b"\n"


@pytest.fixture
async def work(api: Gateway, client: openai.AsyncOpenAI) -> AsyncIterator[Work]:
    batch = await create(client)
    async with api.store() as store:
        work = Work(api, store, batch.id)
        await work.start()
        yield work


async def take(pieces: AsyncIterator[bytes], wanted: int) -> bytes:
    """Read until ``wanted`` lines are there."""
    received = b""
    async with asyncio.timeout(120):
        while received.count(b"\n") < wanted:
            received += await anext(pieces)
    return received


async def test_results_stream_while_the_batch_runs(http: httpx2.AsyncClient, work: Work) -> None:
    async with http.stream("GET", f"/batches/{work.job}/results") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/jsonl")
        pieces = answer.aiter_bytes()
        await work.finish(2, 0)
        assert await take(pieces, 2) == line(2) + line(0)
        await work.finish(1)
        assert await take(pieces, 1) == line(1)
        await work.finish(5, 4, 3, last=True)
        await work.end()
        assert b"".join([piece async for piece in pieces]) == line(5) + line(4) + line(3)


async def test_the_cursor_is_the_number_of_lines_received(
    http: httpx2.AsyncClient, work: Work
) -> None:
    path = f"/batches/{work.job}/results"
    await work.finish(2, 0, 1)
    now = await http.get(path, params={"follow": "false"})
    assert now.content == line(2) + line(0) + line(1)
    for taken in range(4):
        rest = await http.get(path, params={"follow": "false", "cursor": taken})
        assert rest.content == b"".join([line(2), line(0), line(1)][taken:])
    await work.finish(5, 4, 3, last=True)
    await work.end()
    rest = await http.get(path, params={"cursor": 4})
    assert rest.content == line(4) + line(3)
    assert (await http.get(path, params={"cursor": 6})).content == b""
    for wrong in ("-1", "x", "99999999999999999999999"):
        assert (await http.get(path, params={"cursor": wrong})).status_code == 400


async def test_results_as_server_sent_events_resume(http: httpx2.AsyncClient, work: Work) -> None:
    path, headers = f"/batches/{work.job}/results", {"accept": "text/event-stream"}
    await work.finish(0, 1)
    first = await http.get(path, headers=headers, params={"follow": "false"})
    assert first.headers["content-type"].startswith("text/event-stream")
    events = parse(first.text)
    assert [(event["id"], event["event"]) for event in events[:2]] == [
        ("1", "result"),
        ("2", "result"),
    ]
    assert json.loads(events[-1]["data"]) == {
        "object": "results.done", "finished": False, "cursor": 2,
    }  # fmt: skip
    await work.finish(2, 3, 4, 5, last=True)
    await work.end()
    rest = parse((await http.get(path, headers=headers | {"last-event-id": "3"})).text)
    assert [event.get("id") for event in rest] == ["4", "5", "6", None]
    assert json.loads(rest[-1]["data"]) == {"object": "results.done", "finished": True, "cursor": 6}
    assert json.loads(rest[0]["data"])["custom_id"].startswith("r3")
    wrong = await http.get(path, headers=headers | {"last-event-id": "x"})
    assert wrong.status_code == 400


def parse(text: str) -> list[dict[str, str]]:
    """Read server-sent events; comments are left out."""
    return [
        dict(one.split(": ", 1) for one in block.split("\n") if not one.startswith(":"))
        for block in text.split("\n\n")
        if block and not block.startswith(":")
    ]


async def test_purged_results_are_gone_and_say_where_the_file_is(
    http: httpx2.AsyncClient, work: Work
) -> None:
    await work.finish(0, 1, 2, 3, 4, 5, last=True)
    await work.end()
    await work.purge()
    answer = await http.get(f"/batches/{work.job}/results")
    assert answer.status_code == 410
    error = answer.json()["error"]
    assert error["code"] == "results_gone"
    assert "file-out" in error["message"]


async def test_a_client_that_leaves_takes_nothing_along(
    api: Gateway, http: httpx2.AsyncClient, work: Work
) -> None:
    await work.finish(0)
    async with http.stream("GET", f"/batches/{work.job}/results") as answer:
        await take(answer.aiter_bytes(), 1)
    async with http.stream("GET", f"/batches/{work.job}/events") as answer:
        await anext(answer.aiter_bytes())
    async with api.store() as store, asyncio.timeout(120):
        while await followers(store):
            await asyncio.sleep(0.02)


async def followers(store: JetStreamEventStore) -> int:
    """Count consumers that filter on a single batch."""
    consumers = await store.js.consumers_info("EVENTS")
    return sum(
        1
        for info in consumers
        if info.push_bound and any("batch_" in name for name in info.config.filter_subjects or [])
    )


async def test_events_of_a_batch_end_with_it_and_resume(
    http: httpx2.AsyncClient, work: Work
) -> None:
    path = f"/batches/{work.job}/events"
    async with http.stream("GET", path) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        await work.finish(0, 1, 2, 3, 4, 5, last=True)
        await work.end()
        events = parse(b"".join([piece async for piece in answer.aiter_bytes()]).decode())
    assert [event["event"] for event in events] == [
        "job.submitted", "chunk.planned", "job.started", "chunk.leased", "chunk.completed",
        "job.finalizing", "job.completed",
    ]  # fmt: skip
    ids_ = [int(event["id"]) for event in events]
    assert ids_ == sorted(ids_)
    data = json.loads(events[2]["data"])
    assert (data["seq"], data["type"], data["data"]["total"]) == (ids_[2], "job.started", 6)
    rest = parse((await http.get(path, headers={"last-event-id": str(ids_[4])})).text)
    assert [event["event"] for event in rest] == ["job.finalizing", "job.completed"]
    assert parse((await http.get(path, params={"after": ids_[5]})).text) == rest[-1:]
    over = await http.get(path, headers={"last-event-id": str(ids_[6])})
    assert (over.status_code, over.content) == (204, b"")
    assert (await http.get(path, headers={"last-event-id": "x"})).status_code == 400


async def test_other_projects_see_nothing(api: Gateway, work: Work) -> None:
    async with api.http(await api.new_key()) as stranger:
        for path in ("results", "events"):
            assert (await stranger.get(f"/batches/{work.job}/{path}")).status_code == 404
            assert (await stranger.get(f"/batches/{ids.new('batch_')}/{path}")).status_code == 404
