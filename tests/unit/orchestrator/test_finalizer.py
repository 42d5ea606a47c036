"""Files: every custom_id once, in input order, and numbers that say the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.unit.orchestrator.bench import OrchestratorBench, request

from batch_gateway.orchestrator.finalizer import Finalizer
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import Close, Release
from vllm_batch.aggregates.job import Cancel, CloseWindow, Finalize, Job, JobStatus
from vllm_batch.blobs import BlobStore, open_blobs
from vllm_batch.errors import AlreadyDone, BlobMissing, StorageFull
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import FileCreated, JobCompleted, Usage
from vllm_batch.ids import JobId, output_file_id
from vllm_batch.messaging import subjects


def finalizer(bench: OrchestratorBench, blobs: BlobStore | None = None) -> Finalizer:
    return Finalizer(
        bench.store, blobs or bench.blobs, bench.clock, spool_directory=bench.home / "spool"
    )


async def finish(bench: OrchestratorBench, job_id: JobId) -> Job:
    await bench.job_command(job_id, Finalize())
    await finish_again(bench, job_id)
    return await bench.job(job_id)


async def finish_again(
    bench: OrchestratorBench, job_id: JobId, blobs: BlobStore | None = None
) -> int:
    job, seq = await fold(bench.store, subjects.job(job_id), job_rules.evolve)
    assert job is not None
    return await finalizer(bench, blobs).finish(job, seq, await bench.chunks(job_id))


async def job_of(bench: OrchestratorBench, count: int, per_chunk: int, **changes: object) -> JobId:
    lines = [request(f"r{n}") for n in range(count)]
    return await bench.planned("a", lines, per_chunk=per_chunk, **changes)


async def complete(
    bench: OrchestratorBench, job_id: JobId, failing: set[int] = frozenset()
) -> None:  # type: ignore[assignment]
    """Complete every chunk in two segments, the later requests first; ``failing`` by position."""
    position = 0
    for number, chunk in enumerate(await bench.chunks(job_id)):
        await bench.lease(job_id, number)
        count = chunk.planned.count
        results = {index: position + index in failing for index in reversed(range(count))}
        late = {index: results[index] for index in results if index % 2}
        await bench.hand_in(job_id, number, late)
        await bench.hand_in(
            job_id, number, {i: results[i] for i in results if i % 2 == 0}, end=True
        )
        position += count


def ids_of(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


async def test_output_keeps_the_input_order_over_segments_and_chunks(
    bench: OrchestratorBench,
) -> None:
    job_id = await job_of(bench, 25, 4)
    await complete(bench, job_id)
    job = await finish(bench, job_id)
    assert isinstance(job.ended, JobCompleted)
    assert (job.ended.total, job.ended.completed, job.ended.failed) == (25, 25, 0)
    assert job.ended.error_file_id is None
    assert ids_of(await bench.file_lines(job.ended.output_file_id)) == [f"r{n}" for n in range(25)]
    assert job.ended.usage == Usage(250, 25, 125, 50)


async def test_failures_are_in_the_error_file_in_order(bench: OrchestratorBench) -> None:
    job_id = await job_of(bench, 10, 3)
    await complete(bench, job_id, failing={0, 4, 9})
    ended = (await finish(bench, job_id)).ended
    assert ended is not None
    assert (ended.completed, ended.failed) == (7, 3)
    assert ids_of(await bench.file_lines(ended.error_file_id)) == ["r0", "r4", "r9"]
    output = ids_of(await bench.file_lines(ended.output_file_id))
    assert output == [f"r{n}" for n in (1, 2, 3, 5, 6, 7, 8)]


async def test_without_a_success_there_is_no_output_file(bench: OrchestratorBench) -> None:
    job_id = await job_of(bench, 4, 2)
    await complete(bench, job_id, failing={0, 1, 2, 3})
    ended = (await finish(bench, job_id)).ended
    assert isinstance(ended, JobCompleted)
    assert ended.output_file_id is None
    assert not [key async for key in bench.blobs.list("files") if "output" in key]
    assert len(await bench.file_lines(ended.error_file_id)) == 4


@pytest.mark.parametrize(
    ("command", "status", "code"),
    [
        (Cancel(), JobStatus.CANCELLED, "batch_cancelled"),
        (CloseWindow(), JobStatus.EXPIRED, "batch_expired"),
    ],
)
async def test_what_never_ran_is_named_and_not_counted(
    bench: OrchestratorBench, command: Cancel | CloseWindow, status: JobStatus, code: str
) -> None:
    job_id = await job_of(bench, 9, 3)
    await bench.lease(job_id, 0)
    await bench.hand_in(job_id, 0, {0: False, 1: True, 2: False}, end=True)
    await bench.lease(job_id, 1)
    await bench.hand_in(job_id, 1, {1: False})
    await bench.chunk_command(job_id, 1, Release(1, "cancelled"))
    await bench.job_command(job_id, command)
    for number in (1, 2):
        await bench.chunk_command(job_id, number, Close("cancelled"))
    job = await finish(bench, job_id)
    assert job.status is status
    assert job.ended is not None
    assert (job.ended.total, job.ended.completed, job.ended.failed) == (9, 3, 1)
    assert ids_of(await bench.file_lines(job.ended.output_file_id)) == ["r0", "r2", "r4"]
    errors: list[Any] = await bench.file_lines(job.ended.error_file_id)
    assert ids_of(errors) == ["r1", "r3", "r5", "r6", "r7", "r8"]
    assert errors[0]["response"] is not None
    for line in errors[1:]:
        assert (line["response"], line["error"]["code"]) == (None, code)
    assert len({line["id"] for line in errors}) == 6


async def test_what_was_given_up_as_stuck_is_named_and_counted_as_failed(
    bench: OrchestratorBench,
) -> None:
    job_id = await job_of(bench, 4, 2)
    await bench.lease(job_id, 0)
    await bench.hand_in(job_id, 0, {0: False, 1: False}, end=True)
    await bench.chunk_command(job_id, 1, Close("stuck"))
    ended = (await finish(bench, job_id)).ended
    assert isinstance(ended, JobCompleted)
    assert (ended.total, ended.completed, ended.failed) == (4, 2, 2)
    errors: list[Any] = await bench.file_lines(ended.error_file_id)
    assert ids_of(errors) == ["r2", "r3"]
    assert {line["error"]["code"] for line in errors} == {"batch_stuck"}


async def test_a_job_that_ended_before_it_began_has_nothing(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", request("1"))
    await bench.job_command(submitted.job_id, Cancel())
    job = await finish(bench, submitted.job_id)
    assert job.status is JobStatus.CANCELLED
    assert job.ended is not None
    assert (job.ended.total, job.ended.completed, job.ended.failed) == (0, 0, 0)
    assert (job.ended.output_file_id, job.ended.error_file_id) == (None, None)


async def created(bench: OrchestratorBench) -> list[FileCreated]:
    found = []
    async for batch in bench.store.read(subjects.every(FileCreated)):
        found.extend(recorded.event for recorded in batch)
    return found  # type: ignore[return-value]


async def test_files_are_on_record_with_their_size_lines_and_time(bench: OrchestratorBench) -> None:
    job_id = await job_of(bench, 6, 3, output_expires_after_seconds=3600)
    await complete(bench, job_id, failing={5})
    bench.clock.advance(50)
    await finish(bench, job_id)
    files = {file.filename: file for file in await created(bench)}
    assert set(files) == {f"{job_id}_output.jsonl", f"{job_id}_error.jsonl"}
    for file in files.values():
        assert file.purpose == "batch_output"
        assert file.expires_at == int(bench.clock.now().timestamp()) + 3600
        content = await bench.blobs.get(file.blob)
        assert (file.bytes, file.lines) == (len(content), content.count(b"\n"))


async def test_two_finalizers_do_what_one_does(bench: OrchestratorBench) -> None:
    job_id = await job_of(bench, 20, 3)
    await complete(bench, job_id, failing={3, 4})
    await bench.job_command(job_id, Finalize())
    results = await asyncio.gather(
        *(finish_again(bench, job_id) for _ in range(3)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == [
        "AlreadyDone", "AlreadyDone", "int",
    ]  # fmt: skip
    assert len(await created(bench)) == 2
    ended = (await bench.job(job_id)).ended
    assert ended is not None
    assert len(await bench.file_lines(ended.output_file_id)) == 18
    with pytest.raises(AlreadyDone):
        await finish_again(bench, job_id)


async def test_a_second_result_of_a_request_is_dropped_and_said_aloud(
    bench: OrchestratorBench,
) -> None:
    job_id = await job_of(bench, 3, 3)
    await bench.lease(job_id, 0)
    await bench.hand_in(job_id, 0, {0: False, 1: False})
    await bench.hand_in(job_id, 0, {1: True}, end=True)
    with capture_logs() as logs:
        ended = (await finish(bench, job_id)).ended
    assert {entry["event"] for entry in logs} >= {
        "a request has two results: the first stays",
        "results and counts differ",
    }
    assert ended is not None
    assert (ended.completed, ended.failed) == (2, 1)
    assert ids_of(await bench.file_lines(ended.output_file_id)) == ["r0", "r1"]
    errors: list[Any] = await bench.file_lines(ended.error_file_id)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        ("r2", "result_lost")
    ]


async def test_a_missing_segment_ends_nothing(bench: OrchestratorBench) -> None:
    job_id = await job_of(bench, 3, 3)
    await complete(bench, job_id)
    await bench.blobs.delete((await bench.chunks(job_id))[0].segments[0].blob)
    with pytest.raises(BlobMissing):
        await finish(bench, job_id)
    assert (await bench.job(job_id)).status is JobStatus.FINALIZING
    assert await created(bench) == []


class FullStore(BlobStore):
    """Takes a little of a stream, then has no space left."""

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        await anext(chunks)
        raise StorageFull(f"no space left to store {key}")


async def test_a_full_disk_ends_nothing_and_can_be_tried_again(bench: OrchestratorBench) -> None:
    job_id = await job_of(bench, 40, 2)
    await complete(bench, job_id)
    await bench.job_command(job_id, Finalize())
    inner = open_blobs(bench.settings.blob_url)
    full = FullStore(inner._store, inner._root)
    async with asyncio.timeout(10):
        with pytest.raises(StorageFull):
            await finish_again(bench, job_id, full)
    assert (await bench.job(job_id)).status is JobStatus.FINALIZING
    await finish_again(bench, job_id)
    ended = (await bench.job(job_id)).ended
    assert ended is not None
    assert ended.output_file_id == output_file_id(job_id, "output")
    assert len(await bench.file_lines(ended.output_file_id)) == 40
