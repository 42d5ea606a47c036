"""What is deleted, when, and what is left alone."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.orchestrator.bench import START, OrchestratorBench, request

from batch_gateway.orchestrator.board import Board
from batch_gateway.orchestrator.retention import UPLOAD_SLACK_SECONDS, Retention
from vllm_batch.aggregates.job import Cancel, Finalize, Finish
from vllm_batch.errors import BlobError
from vllm_batch.events import FileDeleted, UploadCancelled, UploadCreated, Usage
from vllm_batch.ids import FileId, JobId, ProjectId, UploadId


def at(seconds: float) -> int:
    return int(START.timestamp() + seconds)


async def keys(bench: OrchestratorBench, folder: str = "files") -> set[str]:
    return {key async for key in bench.blobs.list(folder)}


async def loaded(bench: OrchestratorBench, board: Board | None = None) -> Retention:
    retention = Retention(
        board or await bench.board(), bench.store, bench.blobs, bench.settings, bench.clock
    )
    await retention._load()
    return retention


async def sweep(bench: OrchestratorBench, board: Board | None = None) -> None:
    """Sweep as a fresh leader: once to record, once for what that led to."""
    for _ in range(2):
        await (await loaded(bench, board)).sweep()


async def reason(bench: OrchestratorBench, name: str) -> str | None:
    found = None
    async for batch in bench.store.read(f"file.deleted.file-{name}"):
        event = batch[-1].event
        assert isinstance(event, FileDeleted)
        found = event.reason
    return found


async def test_a_file_goes_when_its_time_is_up(bench: OrchestratorBench) -> None:
    await bench.upload("a", b"x", expires_at=at(100))
    await bench.upload("b", b"x")
    bench.clock.advance(99)
    await sweep(bench)
    assert await reason(bench, "a") is None
    bench.clock.advance(1)
    await sweep(bench)
    assert await reason(bench, "a") == "expired"
    assert await keys(bench) == {"files/file-b"}
    await sweep(bench)
    assert await bench.store.last_sequence() == 3


async def test_the_input_of_an_open_job_stays(bench: OrchestratorBench) -> None:
    await bench.upload("a", b"x", expires_at=at(10))
    submitted = await bench.submit("b", request("1"), input_file_id=FileId("file-a"))
    bench.clock.advance(11)
    await sweep(bench)
    assert await reason(bench, "a") is None
    assert "files/file-a" in await keys(bench)
    await end(bench, submitted.job_id)
    await sweep(bench)
    assert await reason(bench, "a") == "expired"


async def end(bench: OrchestratorBench, job_id: JobId) -> None:
    await bench.job_command(job_id, Cancel())
    await bench.job_command(job_id, Finalize())
    finish = Finish(total=0, completed=0, failed=0, usage=Usage(), output_file_id=None,
                    error_file_id=None)  # fmt: skip
    await bench.job_command(job_id, finish)


async def test_the_blob_of_a_deleted_file_that_was_left_is_deleted(
    bench: OrchestratorBench,
) -> None:
    await bench.upload("a", b"x")
    await bench.store.append(FileDeleted(file_id=FileId("file-a"), reason="requested"), expected=1)
    await sweep(bench)
    assert await keys(bench) == set()
    assert await reason(bench, "a") == "requested"


async def test_what_the_log_does_not_know_is_left_alone(bench: OrchestratorBench) -> None:
    for key in ("files/file-z", "segments/batch_z/0/1-1", "uploads/upload_z/part_1"):
        await bench.blobs.put(key, b"x")
    bench.clock.advance(10**8)
    await sweep(bench)
    for folder in ("files", "segments", "uploads"):
        assert len(await keys(bench, folder)) == 1


async def test_segments_and_plans_go_a_while_after_the_job_s_end(bench: OrchestratorBench) -> None:
    ended = await bench.submit("a", request("1"))
    running = await bench.submit("b", request("1"))
    for job_id in (ended.job_id, running.job_id):
        await bench.blobs.put(f"segments/{job_id}/0/1-1", b"x")
        await bench.blobs.put(f"plans/{job_id}/0123.jsonl", b"x")
    await end(bench, ended.job_id)
    bench.clock.advance(bench.settings.segment_retention_seconds - 1)
    await sweep(bench)
    assert len(await keys(bench, "segments")) == 2
    bench.clock.advance(1)
    await sweep(bench)
    assert await keys(bench, "segments") == {f"segments/{running.job_id}/0/1-1"}
    assert await keys(bench, "plans") == {f"plans/{running.job_id}/0123.jsonl"}


@pytest.mark.parametrize("cancelled", [True, False])
async def test_parts_of_an_upload_that_is_over_go(
    bench: OrchestratorBench, cancelled: bool
) -> None:
    upload = UploadId("upload_1")
    created = UploadCreated(
        upload_id=upload, project=ProjectId("p"), filename="f", purpose="batch",
        mime_type="text/plain", bytes=1, expires_at=at(3600),
    )  # fmt: skip
    await bench.store.append(created, expected=0)
    await bench.blobs.put(f"uploads/{upload}/part_1", b"x")
    if cancelled:
        await bench.store.append(UploadCancelled(upload_id=upload), expected=1)
    bench.clock.advance((0 if cancelled else 3600) + UPLOAD_SLACK_SECONDS - 1)
    await sweep(bench)
    assert len(await keys(bench, "uploads")) == 1
    bench.clock.advance(2)
    await sweep(bench)
    assert await keys(bench, "uploads") == set()


async def test_what_cannot_be_deleted_now_is_tried_again(
    bench: OrchestratorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.upload("a", b"x", expires_at=at(10))
    bench.clock.advance(11)
    retention = await loaded(bench)
    delete = bench.blobs.delete

    async def refuse(key: str) -> None:
        raise BlobError(f"{key} is busy")

    monkeypatch.setattr(bench.blobs, "delete", refuse)
    await retention.sweep()
    assert "files/file-a" in await keys(bench)
    monkeypatch.setattr(bench.blobs, "delete", delete)
    bench.clock.advance(60)
    await retention.sweep()
    assert await keys(bench) == set()


async def test_what_happens_while_it_runs_is_noticed(bench: OrchestratorBench) -> None:
    retention = Retention(
        await bench.board(), bench.store, bench.blobs, bench.settings, bench.clock
    )
    task = asyncio.create_task(retention.run())
    await bench.upload("a", b"x")
    await bench.store.append(FileDeleted(file_id=FileId("file-a"), reason="requested"), expected=1)
    async with asyncio.timeout(5):
        while await keys(bench):
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def finished(bench: OrchestratorBench, name: str) -> JobId:
    """Run a job to its end, with an output file and segments."""
    submitted = await bench.submit(name, request("1"))
    job_id = submitted.job_id
    await bench.upload(f"{name}-out", b"answers")
    await bench.job_command(job_id, Cancel())
    await bench.job_command(job_id, Finalize())
    finish = Finish(total=0, completed=0, failed=0, usage=Usage(), error_file_id=None,
                    output_file_id=FileId(f"file-{name}-out"))  # fmt: skip
    await bench.job_command(job_id, finish)
    await bench.blobs.put(f"segments/{job_id}/0/1-1", b"x")
    return job_id


def keeping(bench: OrchestratorBench, seconds: int) -> None:
    bench.settings = bench.settings.model_copy(update={"batch_retention_seconds": seconds})


async def test_a_batch_is_retired_with_its_output_and_results(bench: OrchestratorBench) -> None:
    keeping(bench, 100)
    job_id = await finished(bench, "a")
    bench.clock.advance(99)
    await sweep(bench)
    assert not (await bench.job(job_id)).retired
    assert "files/file-a-out" in await keys(bench)
    bench.clock.advance(1)
    await sweep(bench)
    assert (await bench.job(job_id)).retired
    assert await reason(bench, "a-out") == "expired"
    assert "files/file-a-out" not in await keys(bench)
    assert await keys(bench, "segments") == set()
    before = await bench.store.last_sequence()
    await sweep(bench)  # once
    assert await bench.store.last_sequence() == before


async def test_batches_stay_unless_the_settings_say_otherwise(bench: OrchestratorBench) -> None:
    job_id = await finished(bench, "a")
    bench.clock.advance(10 * 365 * 86_400)
    await sweep(bench)
    assert not (await bench.job(job_id)).retired
    assert "files/file-a-out" in await keys(bench)


async def test_output_that_another_batch_reads_keeps_its_batch(bench: OrchestratorBench) -> None:
    keeping(bench, 100)
    job_id = await finished(bench, "a")
    reader = await bench.submit("b", request("1"), input_file_id=FileId("file-a-out"))
    bench.clock.advance(200)
    await sweep(bench)
    assert not (await bench.job(job_id)).retired
    assert "files/file-a-out" in await keys(bench)
    await end(bench, reader.job_id)
    await sweep(bench)
    assert (await bench.job(job_id)).retired


async def test_a_leader_that_died_between_the_file_and_the_end_is_made_up_for(
    bench: OrchestratorBench,
) -> None:
    keeping(bench, 100)
    job_id = await finished(bench, "a")
    file_seq = [r.seq async for b in bench.store.read("file.*.file-a-out") for r in b][-1]
    await bench.store.append(
        FileDeleted(file_id=FileId("file-a-out"), reason="expired"), expected=file_seq
    )
    bench.clock.advance(200)
    await sweep(bench)
    assert (await bench.job(job_id)).retired
