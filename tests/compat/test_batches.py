"""Batches through the official client; their progress is appended as the services would."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Batch
from tests.facts import append
from tests.gateway_bench import Gateway

from vllm_batch import ids
from vllm_batch.events import (
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobFinalizing,
    JobStarted,
    JobWindowClosed,
    LineError,
    ModelFailed,
    ModelRegistered,
    Segment,
    Usage,
    WorkerReady,
    WorkerStarted,
)
from vllm_batch.ids import FileId, JobId, WorkerId

ENDPOINT = "/v1/chat/completions"


async def upload(client: openai.AsyncOpenAI, purpose: Any = "batch") -> str:
    return (await client.files.create(file=("in.jsonl", b"{}\n"), purpose=purpose)).id


async def create(client: openai.AsyncOpenAI, **changes: Any) -> Batch:
    wanted: dict[str, Any] = {"endpoint": ENDPOINT, "completion_window": "24h"} | changes
    if "input_file_id" not in wanted:
        wanted["input_file_id"] = await upload(client)
    return await client.batches.create(**wanted)


def registered(name: str) -> ModelRegistered:
    return ModelRegistered(
        model_key=ids.model_key(name), name=name, source="models/x", requested_by="test"
    )


def planned(job: str, chunk: int = 0, count: int = 4, *, model: str = "m") -> ChunkPlanned:
    return ChunkPlanned(
        job_id=JobId(job), chunk=chunk, blob="files/x", offset=0, length=1, first_line=1,
        count=count, endpoint=ENDPOINT, model=model,
    )  # fmt: skip


def progress(cls: Any, job: str, completed: int, failed: int, chunk: int = 0) -> Any:
    return cls(
        job_id=JobId(job), chunk=chunk, epoch=1, worker_id=WorkerId("w"), completed=completed,
        failed=failed, usage=Usage(7, 0, 3, 0), segment=Segment("segments/x", 1, completed, failed),
    )  # fmt: skip


def ending(cls: Any, job: str, **fields: Any) -> Any:
    given = {"total": 8, "completed": 5, "failed": 3, "usage": Usage(7, 1, 3, 2)} | fields
    return cls(job_id=JobId(job), **given)


async def test_a_new_batch_has_every_field(client: openai.AsyncOpenAI) -> None:
    file_id = await upload(client)
    batch = await create(client, input_file_id=file_id, metadata={"run": "1"})
    assert batch.id.startswith("batch_")
    assert batch.to_dict() == {
        "id": batch.id, "object": "batch", "endpoint": ENDPOINT, "model": None, "errors": None,
        "input_file_id": file_id, "completion_window": "24h", "status": "validating",
        "output_file_id": None, "error_file_id": None, "created_at": batch.created_at,
        "in_progress_at": None, "expires_at": batch.created_at + 86_400, "finalizing_at": None,
        "completed_at": None, "failed_at": None, "expired_at": None, "cancelling_at": None,
        "cancelled_at": None, "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": None, "metadata": {"run": "1"}, "vllm_batch": {"waiting_for": []},
    }  # fmt: skip
    assert await client.batches.retrieve(batch.id) == batch
    assert (await client.batches.list()).data == [batch]


async def test_a_batch_on_its_way_to_completed(api: Gateway, client: openai.AsyncOpenAI) -> None:
    created = await create(client)
    job = JobId(created.id)

    async def now() -> Batch:
        await client.batches.retrieve(created.id)
        await client.batches.list()  # the read models have what was shown
        one = await client.batches.retrieve(created.id)
        assert await client.batches.retrieve(created.id) == one
        assert one in (await client.batches.list()).data
        return one

    async with api.store() as store:
        await append(store, planned(job, 0), planned(job, 1))
        await append(store, JobStarted(job_id=job, total=8, chunks=2, model="m"))
        started = await now()
        assert (started.status, started.model) == ("in_progress", "m")
        assert started.in_progress_at is not None
        await append(store, ChunkLeased(job_id=job, chunk=0, epoch=1, worker_id=WorkerId("w")))
        last = (await append(store, progress(ChunkProgressed, job, 2, 1)))[0].seq
        await wait_until_projected(api, client, created.id, 3)
        running = await now()
        assert running.request_counts is not None
        assert running.request_counts.to_dict() == {"total": 8, "completed": 2, "failed": 1}
        assert (running.usage, running.output_file_id) == (None, None)
        assert last
        await append(store, progress(ChunkCompleted, job, 2, 2))
        await append(store, JobFinalizing(job_id=job, outcome="completed"))
        finalizing = await now()
        assert (finalizing.status, finalizing.output_file_id) == ("finalizing", None)
        output = FileId("file-output")
        await append(store, ending(JobCompleted, job, output_file_id=output))
        done = await now()
    assert (done.status, done.output_file_id, done.error_file_id) == ("completed", output, None)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 8, "completed": 5, "failed": 3}
    assert done.usage is not None
    assert done.usage.to_dict() == {
        "input_tokens": 7, "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 10,
    }  # fmt: skip
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(created.id)
    assert await now() == done


async def wait_until_projected(
    api: Gateway, client: openai.AsyncOpenAI, batch_id: str, results: int
) -> None:
    async with asyncio.timeout(60):
        while True:
            counts = (await client.batches.retrieve(batch_id)).request_counts
            assert counts is not None
            if counts.completed + counts.failed == results:
                return


async def test_a_failed_batch_lists_its_errors(api: Gateway, client: openai.AsyncOpenAI) -> None:
    created = await create(client)
    error = LineError("invalid_json_line", "This line is not JSON.", None, 3)
    whole = LineError("empty_file", "No requests.")
    async with api.store() as store:
        failed = JobFailed(job_id=JobId(created.id), errors=[error, whole], error_count=2)
        await append(store, failed)
    batch = await client.batches.retrieve(created.id)
    assert (batch.status, batch.output_file_id, batch.usage) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.to_dict() == {
        "object": "list",
        "data": [
            {"code": "invalid_json_line", "message": error.message, "param": None, "line": 3},
            {"code": "empty_file", "message": whole.message, "param": None, "line": None},
        ],
    }


async def test_cancel_answers_at_once_and_wins_once(
    api: Gateway, client: openai.AsyncOpenAI
) -> None:
    created = await create(client)
    cancelling = await client.batches.cancel(created.id)
    assert (cancelling.status, cancelling.cancelling_at is None) == ("cancelling", False)
    assert await client.batches.cancel(created.id) == cancelling
    job = JobId(created.id)
    async with api.store() as store:
        await append(store, JobFinalizing(job_id=job, outcome="cancelled"))
        writing_files = await client.batches.retrieve(created.id)
        assert (writing_files.status, writing_files.finalizing_at) == ("cancelling", None)
        assert await client.batches.cancel(created.id) == writing_files
        counts = {"completed": 4, "failed": 0, "error_file_id": FileId("file-e")}
        await append(store, ending(JobCancelled, job, **counts))
    done = await client.batches.retrieve(created.id)
    assert (done.status, done.cancelled_at is None) == ("cancelled", False)
    with pytest.raises(openai.ConflictError) as refused:
        await client.batches.cancel(created.id)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert await client.batches.retrieve(created.id) == done


async def test_an_expired_batch(api: Gateway, client: openai.AsyncOpenAI) -> None:
    created = await create(client, completion_window="1m")
    assert created.expires_at == created.created_at + 60
    job = JobId(created.id)
    async with api.store() as store:
        await append(store, JobStarted(job_id=job, total=8, chunks=1, model="m"))
        await append(store, JobWindowClosed(job_id=job))
        closing = await client.batches.retrieve(created.id)
        assert closing.status == "in_progress"
        with pytest.raises(openai.ConflictError, match="window"):
            await client.batches.cancel(created.id)
        await append(store, JobFinalizing(job_id=job, outcome="expired"))
        await append(store, ending(JobExpired, job, completed=1, failed=0))
    done = await client.batches.retrieve(created.id)
    assert (done.status, done.expired_at is None) == ("expired", False)


@pytest.mark.parametrize("window", ["24h", "1m", "90m", "7d"])
async def test_windows_we_take(client: openai.AsyncOpenAI, window: str) -> None:
    assert (await create(client, completion_window=window)).completion_window == window


@pytest.mark.parametrize(
    ("change", "param"),
    [
        *(
            ({"completion_window": window}, "completion_window")
            for window in (
                "",
                "soon",
                "-1h",
                "0h",
                "24",
                "24H",
                "1w",
                "1.5h",
                "٣h",
                "999999999d",
                24,
            )
        ),
        *(
            ({"endpoint": endpoint}, "endpoint")
            for endpoint in ("", "/v1/nonsense", "/v1/images/generations", "/v1/moderations", 7)
        ),
        ({"input_file_id": "file-unknown"}, "input_file_id"),
        ({"input_file_id": "../../etc/passwd"}, "input_file_id"),
        ({"input_file_id": "file-\0"}, "input_file_id"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {"k": "nul\0"}}, "metadata.k"),
        ({"metadata": {"k": 7}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after.seconds"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "output_expires_after.seconds",
        ),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            "output_expires_after.anchor",
        ),
        ({"priority": 101}, "priority"),
        ({"priority": "high"}, "priority"),
    ],
)
async def test_wrong_values_are_named(
    client: openai.AsyncOpenAI, http: httpx2.AsyncClient, change: dict[str, Any], param: str
) -> None:
    body = {
        "input_file_id": await upload(client), "endpoint": ENDPOINT, "completion_window": "24h",
    }  # fmt: skip
    answer = await http.post("/batches", json=body | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await http.get("/batches")).json()["data"] == []


@pytest.mark.parametrize("missing", ["input_file_id", "endpoint", "completion_window"])
async def test_missing_values_are_named(http: httpx2.AsyncClient, missing: str) -> None:
    body = {"input_file_id": "file-x", "endpoint": ENDPOINT, "completion_window": "24h"}
    del body[missing]
    error = (await http.post("/batches", json=body)).json()["error"]
    assert (error["param"], error["code"]) == (missing, "missing_required_parameter")


async def test_metadata_is_counted_in_characters_and_kept(client: openai.AsyncOpenAI) -> None:
    full = {"🔑" * 62 + f"{n:02}": "🎉" * 512 for n in range(16)}
    assert (await create(client, metadata=full)).metadata == full
    assert (await create(client, metadata={})).metadata == {}
    assert (await create(client, metadata=None)).metadata is None


async def test_unknown_fields_are_ignored_and_priority_is_taken(client: openai.AsyncOpenAI) -> None:
    batch = await create(client, extra_body={"unheard_of": 1, "priority": -5})
    assert batch.status == "validating"


async def test_files_of_other_purposes_are_refused(client: openai.AsyncOpenAI) -> None:
    other = await upload(client, purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await create(client, input_file_id=other)


async def test_an_idempotency_key_makes_one_batch(client: openai.AsyncOpenAI) -> None:
    file_id = await upload(client)
    header = {"Idempotency-Key": "the same deed"}
    wanted = {"input_file_id": file_id, "extra_headers": header}
    batches = await asyncio.gather(*(create(client, **wanted) for _ in range(5)))
    assert len({batch.id for batch in batches}) == 1
    assert len((await client.batches.list()).data) == 1
    await client.batches.cancel(batches[0].id)
    assert (await create(client, **wanted)).status == "cancelling"
    with pytest.raises(openai.ConflictError) as refused:
        await create(client, **wanted, metadata={"another": "deed"})
    assert refused.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.BadRequestError):
        await create(client, input_file_id=file_id, extra_headers={"Idempotency-Key": "k" * 256})


async def test_projects_do_not_see_each_other(api: Gateway, client: openai.AsyncOpenAI) -> None:
    batch = await create(client, extra_headers={"Idempotency-Key": "k"})
    async with api.async_client(await api.new_key()) as stranger:
        for call in (stranger.batches.retrieve, stranger.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await call(batch.id)
        with pytest.raises(openai.BadRequestError):
            await create(stranger, input_file_id=batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            await stranger.files.retrieve(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            await stranger.files.content(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            await stranger.files.delete(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            await stranger.batches.list(after=batch.id)
        assert (await stranger.batches.list()).data == []
        assert (await stranger.files.list()).data == []
        own = await create(stranger, extra_headers={"Idempotency-Key": "k"})
        assert own.id != batch.id


async def test_a_batch_says_which_models_it_waits_for_and_why(
    api: Gateway, client: openai.AsyncOpenAI
) -> None:
    served, asleep, broken, unregistered = (f"{ids.new('m_')}" for _ in range(4))
    batch = await create(client, metadata={"allow_mixed_models": "true"})
    worker = WorkerId(ids.new("worker_"))
    async with api.store() as store:
        await append(
            store,
            WorkerStarted(worker_id=worker, name="gpu-1", host="h", pid=1, engine="e", version="1"),
            WorkerReady(worker_id=worker, models=[served], in_flight_max=1),
        )
        for name in (served, asleep, broken):
            await append(store, registered(name))
        await append(
            store,
            ModelFailed(
                model_key=ids.model_key(broken), reason="it is too large", worker_id=worker,
                worker_name="gpu-1",
            ),
        )  # fmt: skip
        for number, model in enumerate((served, asleep, broken, unregistered, asleep)):
            await append(store, planned(batch.id, number, model=model))
        await append(store, JobStarted(job_id=JobId(batch.id), total=20, chunks=5, model=served))
    waiting: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while sum(one["requests"] for one in waiting) < 16:  # until the read models are there
            batch = await client.batches.retrieve(batch.id)
            waiting = batch.to_dict()["vllm_batch"]["waiting_for"]  # type: ignore[index]
    assert [(one["model"], one["requests"]) for one in waiting] == [
        (asleep, 8), (broken, 4), (unregistered, 4),
    ]  # fmt: skip
    assert f"vllm-batch model load {asleep}" in waiting[0]["message"]
    assert "gpu-1: it is too large" in waiting[1]["message"]
    assert "Start one" in waiting[2]["message"]
    assert (await client.batches.list()).data == [batch]


async def test_the_input_of_a_running_batch_is_kept(
    api: Gateway, client: openai.AsyncOpenAI
) -> None:
    batch = await create(client)
    with pytest.raises(openai.ConflictError, match="has not ended"):
        await client.files.delete(batch.input_file_id)
    async with api.store() as store:
        await append(store, JobFailed(job_id=JobId(batch.id), errors=[], error_count=0))
    assert (await client.files.delete(batch.input_file_id)).deleted
    with pytest.raises(openai.BadRequestError):
        await create(client, input_file_id=batch.input_file_id)


async def test_pages_are_stable_while_batches_arrive(client: openai.AsyncOpenAI) -> None:
    file_id = await upload(client)
    made = [(await create(client, input_file_id=file_id)).id for _ in range(6)]
    page = await client.batches.list(limit=2)
    seen = [batch.id for batch in page.data]
    while page.has_next_page():
        await create(client, input_file_id=file_id)
        page = await page.get_next_page()
        seen += [batch.id for batch in page.data]
    assert seen == made[::-1]
    assert not (await client.batches.list(limit=2, after=made[2])).has_more
    for wrong in ("batch_unknown", "../x", "\0"):
        with pytest.raises(openai.APIStatusError):
            await client.batches.list(after=wrong)


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x"])
async def test_wrong_limits_are_refused(http: httpx2.AsyncClient, limit: str) -> None:
    answer = await http.get("/batches", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
