"""The API while Postgres or NATS is away, with a second replica beside it, and at its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import pytest
from tests.compat.test_batches import create, ending, planned, progress
from tests.facts import append
from tests.gateway_bench import Gateway, gateway

from vllm_batch.events import (
    ChunkLeased,
    ChunkProgressed,
    JobCompleted,
    JobFinalizing,
    JobStarted,
    WorkerReady,
    WorkerStarted,
)
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.local import ports
from vllm_batch.local.programs import environment_of


async def test_postgres_away_stops_lists_only(tmp_path: Path) -> None:
    with gateway(tmp_path / "home", read_your_writes_seconds=15) as running:
        key = await running.new_key()
        async with (
            running.async_client(key) as client,
            running.http(key) as http,
            running.store() as store,
        ):
            before = await create(client)
            worker = WorkerId("w")
            await append(
                store,
                WorkerStarted(worker_id=worker, name="w", host="h", pid=1, engine="e", version="1"),
                WorkerReady(worker_id=worker, models=["m"], in_flight_max=1),
            )
            await asyncio.to_thread(running.stack.service("postgres").hold)
            running.wait_until("degraded")
            job = JobId(before.id)
            await append(store, planned(job, 0), planned(job, 1))
            await append(store, JobStarted(job_id=job, total=8, chunks=2, model="m"))
            await append(store, ChunkLeased(job_id=job, chunk=0, epoch=1, worker_id=worker))
            await append(store, progress(ChunkProgressed, job, 2, 1))
            running_batch = await client.batches.retrieve(before.id)
            assert running_batch.status == "in_progress"
            assert running_batch.request_counts is not None
            assert running_batch.request_counts.to_dict() == {
                "total": 8, "completed": 2, "failed": 1,
            }  # fmt: skip
            started = time.monotonic()
            during = await create(client)
            assert (await client.batches.retrieve(during.id)) == during
            assert (await client.batches.cancel(during.id)).status == "cancelling"
            assert (await client.files.content(during.input_file_id)).content == b"{}\n"
            assert [model.id async for model in client.models.list()] == ["m"]
            assert time.monotonic() - started < 12  # nobody waited for Postgres
            for path in ("/batches", "/files"):
                answer = await http.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "database" in answer.json()["error"]["message"]
            refused = await http.delete(f"/files/{before.input_file_id}")
            assert refused.status_code == 503
            await append(store, JobFinalizing(job_id=job, outcome="completed"))
            await append(store, ending(JobCompleted, job))
            assert (await client.batches.retrieve(before.id)).status == "completed"
            await asyncio.to_thread(running.stack.service("postgres").release)
            running.wait_until("ready")
            listed = (await first_list(http)).json()["data"]
            assert [batch["id"] for batch in listed] == [during.id, before.id]
            assert listed[1] == (await http.get(f"/batches/{before.id}")).json()


async def first_list(http: httpx2.AsyncClient) -> httpx2.Response:
    """Return the first list that is no refusal: it may be late, but never be short."""
    async with asyncio.timeout(120):
        while (answer := await http.get("/batches")).status_code == 503:
            await asyncio.sleep(0.02)
    return answer


async def test_nats_away_is_said_and_survived(tmp_path: Path) -> None:
    with gateway(tmp_path / "home", append_timeout_seconds=2) as running:
        key = await running.new_key()
        async with running.async_client(key) as client, running.http(key) as http:
            batch = await create(client)
            await asyncio.to_thread(running.stack.service("nats").hold)
            running.wait_until("unavailable")
            assert (await http.get(running.url.removesuffix("/v1") + "/healthz")).status_code == 200
            for answer in (
                await http.post("/files", data={"purpose": "batch"}, files={"file": b"x"}),
                await http.get("/batches/batch_unknown"),
                await http.post(f"/batches/{batch.id}/cancel"),
            ):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "event log" in answer.json()["error"]["message"]
            assert [one async for one in client.batches.list()] == [batch]
            assert await client.batches.retrieve(batch.id) == batch  # the read models know it
            assert (await client.files.content(batch.input_file_id)).content == b"{}\n"
            await asyncio.to_thread(running.stack.service("nats").release)
            running.wait_until("ready")
            assert await client.batches.retrieve(batch.id) == batch
            assert await create(client)
        await running.new_key()  # the keys are followed again, too


class Replica:
    """A second API process over the same servers."""

    def __init__(self, beside: Gateway, **settings: object) -> None:
        self.port = ports.pick(None)
        given = beside.settings
        values = {
            "home": given.home,
            "nats_url": given.nats_url,
            "postgres_dsn": given.postgres_dsn,
            "blob_url": given.blob_url,
            "api_port": self.port,
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "batch_gateway", "api"],
            env=os.environ | environment_of(values),
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 90
        while True:
            try:
                answer = httpx2.get(self.url.removesuffix("/v1") + "/readyz", timeout=20)
                if answer.json()["status"] == "ready":
                    return
            except httpx2.TransportError:
                assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    async def wait_until_known(self, secret: str) -> None:
        """Wait until this replica has heard of a key, too."""
        headers = {"authorization": f"Bearer {secret}"}
        async with (
            asyncio.timeout(60),
            httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=20) as http,
        ):
            while (await http.get("/files/file-x")).status_code == 401:
                await asyncio.sleep(0.01)


async def test_what_one_replica_wrote_the_other_reads_at_once(tmp_path: Path) -> None:
    patient = {"read_your_writes_seconds": 60}
    with (
        gateway(tmp_path / "home", **patient) as running,
        Replica(running, **patient) as replica,
    ):
        replica.wait_until_ready()
        key = await running.new_key()
        await replica.wait_until_known(key)
        async with (
            running.async_client(key) as here,
            openai.AsyncOpenAI(base_url=replica.url, api_key=key, max_retries=0) as there,
        ):
            for _ in range(20):
                batch = await create(here)
                assert await there.batches.retrieve(batch.id) == batch
                assert (await there.batches.list(limit=1)).data == [batch]
                assert (await there.files.list(limit=1)).data[0].id == batch.input_file_id
            file_id = batch.input_file_id
            header = {"Idempotency-Key": "both"}
            made = await asyncio.gather(
                *(
                    create(client, input_file_id=file_id, extra_headers=header)
                    for client in (here, there) * 4
                )
            )
            assert len({batch.id for batch in made}) == 1
            with pytest.raises(openai.ConflictError):
                await there.files.delete(file_id)


async def test_sigterm_ends_it_cleanly_with_streams_open(tmp_path: Path) -> None:
    with gateway(tmp_path / "home") as running, Replica(running) as replica:
        replica.wait_until_ready()
        key = await running.new_key()
        await replica.wait_until_known(key)
        async with running.async_client(key) as client:
            batch = await create(client)
        headers = {"authorization": f"Bearer {key}"}
        async with (
            httpx2.AsyncClient(base_url=replica.url, headers=headers, timeout=60) as http,
            http.stream("GET", f"/batches/{batch.id}/events") as answer,
        ):
            pieces = answer.aiter_bytes()
            assert b"job.submitted" in await anext(pieces)
            replica.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(replica.process.wait, 60) == 0


async def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with gateway(tmp_path / "home", with_postgres=False) as running:
        port = running.settings.api_port
        with Replica(running, api_port=port) as replica:
            _, errors = await asyncio.to_thread(replica.process.communicate, timeout=60)
    assert replica.process.returncode == 1
    last = errors.decode().strip().splitlines()[-1]
    assert f"cannot listen on 127.0.0.1:{port}" in last
    assert "Traceback" not in errors.decode()
