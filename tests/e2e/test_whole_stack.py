"""Batches of every kind through the whole stack, with the official client and the simulated
engine."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime

import openai
import pytest
from tests.e2e.conftest import ENDPOINT, Round, jsonl

from vllm_batch import ids
from vllm_batch.event_store import jetstream
from vllm_batch.events import JobSubmitted
from vllm_batch.ids import FileId, JobId, ProjectId

SLEEPING = "[[sim:sleep=300]]"


def test_a_full_round_with_the_official_client(simulated: Round) -> None:
    client = simulated.client
    lines = [simulated.line(f"r-{number}") for number in range(300)]
    batch = client.batches.create(
        input_file_id=client.files.create(file=("my file.jsonl", jsonl(lines)), purpose="batch").id,
        endpoint=ENDPOINT,
        completion_window="24h",
        metadata={"who": "é" * 512},
    )
    assert batch.status in {"validating", "in_progress"}
    assert batch.id in {one.id for one in client.batches.list(limit=5)}
    done = simulated.wait(batch)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert done.request_counts.completed == done.request_counts.total == 300
    assert done.error_file_id is None
    assert done.metadata == {"who": "é" * 512}
    assert done.model == simulated.model
    times = (done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at)
    assert all(times)
    assert list(times) == sorted(time for time in times if time)
    rows = simulated.rows(done.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"r-{number}" for number in range(300)]
    assert len({row["id"] for row in rows}) == len({r["response"]["request_id"] for r in rows})
    used = sum(row["response"]["body"]["usage"]["total_tokens"] for row in rows)
    assert done.usage is not None
    assert done.usage.total_tokens == used
    output = client.files.retrieve(str(done.output_file_id))
    assert (output.purpose, output.filename) == ("batch_output", f"{done.id}_output.jsonl")
    assert client.files.delete(output.id).deleted
    assert client.files.delete(batch.input_file_id).deleted
    assert client.batches.retrieve(done.id).status == "completed"


async def test_the_asynchronous_client_runs_many_batches_at_once(simulated: Round) -> None:
    async with openai.AsyncOpenAI(
        base_url=simulated.stack.api_url, api_key=simulated.stack.api_key, max_retries=0
    ) as client:

        async def one(number: int) -> None:
            lines = jsonl([simulated.line(f"same-{n}") for n in range(20 + number)])
            file = await client.files.create(file=lines, purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
            )
            async with asyncio.timeout(60):
                while batch.status != "completed":
                    await asyncio.sleep(0.05)
                    batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts is not None
            assert batch.request_counts.completed == 20 + number

        await asyncio.gather(*(one(number) for number in range(12)))


def test_a_large_file_keeps_its_order(simulated: Round) -> None:
    batch = simulated.run([simulated.line(f"r-{number}") for number in range(20_000)])
    rows = simulated.rows(batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"r-{number}" for number in range(20_000)]


def test_a_small_batch_does_not_wait_behind_a_large_one(simulated: Round) -> None:
    prompt = "[[sim:sleep=0.05]]"
    large = simulated.submit(
        jsonl([simulated.line(f"l-{number}", prompt) for number in range(50_000)])
    )
    deadline = time.monotonic() + 120
    while not (large.request_counts and large.request_counts.completed):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        large = simulated.client.batches.retrieve(large.id)
    small = simulated.run([simulated.line(f"s-{number}", prompt) for number in range(10)])
    assert small.status == "completed"
    large = simulated.client.batches.retrieve(large.id)
    assert large.status == "in_progress"
    simulated.client.batches.cancel(large.id)
    assert simulated.wait(large).status == "cancelled"


def test_a_cancelled_batch_keeps_what_was_done_and_names_the_rest(simulated: Round) -> None:
    lines = [simulated.line(f"r-{n}", SLEEPING if n % 3 == 2 else "quick") for n in range(600)]
    batch = simulated.submit(jsonl(lines))
    deadline = time.monotonic() + 120
    while not (batch.request_counts and batch.request_counts.completed >= 100):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        batch = simulated.client.batches.retrieve(batch.id)
    asked = time.monotonic()
    assert simulated.client.batches.cancel(batch.id).status == "cancelling"
    with suppress(openai.ConflictError):  # it may be cancelled already
        assert simulated.client.batches.cancel(batch.id).status == "cancelling"
    done = simulated.wait(batch)
    assert time.monotonic() - asked < 60
    assert done.status == "cancelled"
    assert done.cancelled_at
    output, errors = simulated.rows(done.output_file_id), simulated.rows(done.error_file_id)
    assert done.request_counts is not None
    assert done.request_counts.total == 600
    assert done.request_counts.completed == len(output) >= 100
    assert done.request_counts.failed == 0
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    seen = [row["custom_id"] for row in output + errors]
    assert sorted(seen) == sorted(line["custom_id"] for line in lines)
    with pytest.raises(openai.ConflictError):
        simulated.client.batches.cancel(done.id)
    assert simulated.client.batches.retrieve(done.id) == done


async def test_an_expired_batch_keeps_what_was_done_and_names_the_rest(simulated: Round) -> None:
    """The shortest window of the API is a minute, so this one is put into the log directly."""
    lines = [simulated.line(f"r-{n}", SLEEPING if n == 7 else "quick") for n in range(10)]
    file = simulated.client.files.create(file=jsonl(lines), purpose="batch")
    job_id = ids.new_job_id()
    async with jetstream.connect(simulated.stack.settings, source="test") as store:
        submitted = JobSubmitted(
            job_id=JobId(job_id),
            project=ProjectId("default"),
            input_file_id=FileId(file.id),
            endpoint=ENDPOINT,
            completion_window="24h",
            expires_at=int(datetime.now(UTC).timestamp()) + 20,
        )
        await store.append(submitted, expected=0)
    batch = await asyncio.to_thread(
        lambda: simulated.wait(simulated.client.batches.retrieve(job_id))
    )
    assert batch.status == "expired"
    assert batch.expired_at is not None
    assert batch.expires_at is not None
    assert batch.expired_at >= batch.expires_at
    assert batch.request_counts is not None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 9, 0)
    (left,) = simulated.rows(batch.error_file_id)
    assert (left["custom_id"], left["error"]["code"]) == ("r-7", "batch_expired")


def test_two_batches_share_one_input_and_do_not_mix(simulated: Round) -> None:
    file = simulated.client.files.create(
        file=jsonl([simulated.line(f"r-{number}") for number in range(50)]), purpose="batch"
    )
    pair = [
        simulated.client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
        )
        for _ in range(2)
    ]
    first, second = (simulated.rows(simulated.wait(one).output_file_id) for one in pair)
    assert [row["custom_id"] for row in first] == [row["custom_id"] for row in second]
    assert not {row["id"] for row in first} & {row["id"] for row in second}


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "Once"}, "text_completion"),
        ("/v1/embeddings", {"input": ["a", "b"]}, "list"),
        ("/v1/responses", {"input": "Hello"}, "response"),
    ],
)
def test_other_endpoints(
    simulated: Round, endpoint: str, body: dict[str, object], kind: str
) -> None:
    lines = [
        {
            "custom_id": f"r-{number}",
            "method": "POST",
            "url": endpoint,
            "body": {"model": simulated.model, **body},
        }
        for number in range(3)
    ]
    batch = simulated.run(lines, endpoint=endpoint)
    assert batch.status == "completed", batch.errors
    rows = simulated.rows(batch.output_file_id)
    assert {row["response"]["body"]["object"] for row in rows} == {kind}
    assert batch.usage is not None
    assert batch.usage.input_tokens > 0
