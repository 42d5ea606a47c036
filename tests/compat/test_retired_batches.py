"""A batch whose time is up: nobody is shown it, what it used stays in the bill."""

from __future__ import annotations

import asyncio

import httpx2
import openai
import pytest
from tests.compat.test_batches import create, ending, planned, progress
from tests.facts import append
from tests.gateway_bench import Gateway

from vllm_batch.events import (
    ChunkCompleted,
    ChunkLeased,
    JobCompleted,
    JobFinalizing,
    JobRetired,
    JobStarted,
)
from vllm_batch.ids import JobId, WorkerId


async def test_a_retired_batch_is_gone_and_paid_for(
    api: Gateway, client: openai.AsyncOpenAI, http: httpx2.AsyncClient
) -> None:
    key = {"Idempotency-Key": "the deed"}
    kept = await create(client)
    batch = await create(client, input_file_id=kept.input_file_id, extra_headers=key)
    job = JobId(batch.id)
    async with api.store() as store:
        await append(
            store,
            planned(job),
            JobStarted(job_id=job, total=4, chunks=1, model="m"),
            ChunkLeased(job_id=job, chunk=0, epoch=1, worker_id=WorkerId("w")),
            progress(ChunkCompleted, job, 4, 0),
            JobFinalizing(job_id=job, outcome="completed"),
            ending(JobCompleted, job, total=4, completed=4, failed=0),
        )
        assert (await client.batches.retrieve(job)).status == "completed"
        await append(store, JobRetired(job_id=job))
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await call(job)
    for path in ("results", "events"):
        assert (await http.get(f"/batches/{job}/{path}")).status_code == 404
    async with asyncio.timeout(120):  # the lists are some milliseconds behind
        while [found.id for found in (await client.batches.list()).data] != [kept.id]:
            await asyncio.sleep(0.02)
    # Whoever is in the middle of the list can go on.
    assert [found.id for found in (await client.batches.list(after=job)).data] == [kept.id]
    with pytest.raises(openai.ConflictError, match="deleted by now"):
        await create(client, input_file_id=kept.input_file_id, extra_headers=key)
    report = (await http.get("/usage", params={"group_by": "batch"})).json()
    assert [(line["batch"], line["requests"]) for line in report["data"]] == [(job, 4)]
