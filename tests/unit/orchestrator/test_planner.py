"""Planning: once, whoever does it, however often it is begun; or a clear refusal."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.orchestrator.bench import OrchestratorBench, request

from batch_gateway.orchestrator.model_names import RecordedNames
from batch_gateway.orchestrator.planner import Planner
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.job import Cancel, JobStatus
from vllm_batch.batch_file import parse_request, request_lines
from vllm_batch.errors import AlreadyDone, Conflict, EventStoreUnavailable, Rejected
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import ChunkPlanned, Event, FileDeleted, JobSubmitted, Recorded
from vllm_batch.ids import EventId, FileId, JobId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings


class Known(RecordedNames):
    """Every model there is, but "unknown"."""

    def resolve(self, name: str) -> str | None:
        return None if name == "unknown" else super().resolve(name)


def planner(
    bench: OrchestratorBench, aliases: dict[str, str] | None = None, **overrides: object
) -> Planner:
    settings = Settings(home=bench.home, **{"chunk_requests_max": 4, **overrides})  # type: ignore[arg-type]
    return Planner(bench.store, bench.blobs, settings, Known(aliases or {}))


async def plan(
    bench: OrchestratorBench,
    submitted: JobSubmitted,
    aliases: dict[str, str] | None = None,
    **overrides: object,
) -> int:
    job, seq = await fold(bench.store, subjects.job(submitted.job_id), job_rules.evolve)
    assert job is not None
    return await planner(bench, aliases, **overrides).plan(job, seq)


async def covered(bench: OrchestratorBench, job_id: JobId) -> list[str]:
    """Return the custom_ids that the planned chunks hold, as workers will read them."""
    found = []
    for chunk in await bench.chunks(job_id):
        planned = chunk.planned
        data = await bench.blobs.get(planned.blob, start=planned.offset, length=planned.length)
        lines = list(request_lines(data))
        assert len(lines) == planned.count
        found.extend(parse_request(line).custom_id for line in lines)
    return found


def names(count: int) -> list[str]:
    return [f"r{n}" for n in range(count)]


def content(count: int) -> bytes:
    return b"".join(request(name) for name in names(count))


async def test_a_valid_file_becomes_chunks_and_a_running_job(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", content(10))
    seq = await plan(bench, submitted)
    job = await bench.job(submitted.job_id)
    assert job.status is JobStatus.RUNNING
    assert job.started is not None
    assert (job.started.total, job.started.chunks, job.started.model) == (10, 3, "m")
    assert seq == await bench.store.last_sequence()
    assert await covered(bench, submitted.job_id) == names(10)
    plans = [chunk.planned for chunk in await bench.chunks(submitted.job_id)]
    assert [plan.first_line for plan in plans] == [1, 5, 9]
    assert plans[0].cut is not None
    assert plans[1].cut is None


@pytest.mark.parametrize(
    "mangled",
    [
        pytest.param(b"\xef\xbb\xbf" + content(9), id="BOM"),
        pytest.param(content(9).replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(b"\n \n" + content(9).replace(b"\n", b"\n\n\t\n") + b"\n\n", id="blank lines"),
        pytest.param(content(9)[:-1], id="no newline at the end"),
    ],
)
async def test_odd_but_valid_files_are_covered_exactly(
    bench: OrchestratorBench, mangled: bytes
) -> None:
    submitted = await bench.submit("a", mangled)
    await plan(bench, submitted)
    assert await covered(bench, submitted.job_id) == names(9)


async def test_a_five_megabyte_line_is_a_chunk_of_its_own(bench: OrchestratorBench) -> None:
    lines = [request("a"), request("b", padding=5_000_000), request("c"), request("d")]
    submitted = await bench.submit("a", b"".join(lines))
    await plan(bench, submitted, chunk_bytes_max=1_000_000)
    assert await covered(bench, submitted.job_id) == ["a", "b", "c", "d"]
    assert [chunk.planned.count for chunk in await bench.chunks(submitted.job_id)] == [1, 1, 2]


async def failure(bench: OrchestratorBench, submitted: JobSubmitted) -> tuple[str, int]:
    job = await bench.job(submitted.job_id)
    assert job.failed is not None
    assert await bench.chunks(submitted.job_id) == []
    return job.failed.errors[0].code, job.failed.error_count


async def test_an_invalid_file_fails_with_its_lines_and_plans_nothing(
    bench: OrchestratorBench,
) -> None:
    submitted = await bench.submit("a", content(10) + b"{}\n" + request("r1"))
    await plan(bench, submitted)
    assert await failure(bench, submitted) == ("missing_required_parameter", 5)


async def test_an_unknown_model_fails(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", request("a", model="unknown"))
    await plan(bench, submitted)
    assert await failure(bench, submitted) == ("model_not_found", 1)


async def test_a_line_beyond_the_limit_over_many_pieces_fails(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", request("a") + request("b", padding=5_000_000))
    await plan(bench, submitted, request_bytes_max=2_000_000)
    assert await failure(bench, submitted) == ("invalid_value", 1)


async def test_a_deleted_input_fails_clearly(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", content(3))
    await bench.store.append(
        FileDeleted(file_id=FileId("file-a"), reason="requested"),
        expected=await bench.store.last_sequence() - 1,
    )
    await plan(bench, submitted)
    assert await failure(bench, submitted) == ("file_not_found", 1)


async def test_a_missing_blob_fails_clearly(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", content(3))
    await bench.blobs.delete("files/file-a")
    await plan(bench, submitted)
    assert await failure(bench, submitted) == ("file_not_found", 1)


async def test_a_file_that_is_too_large_fails_unread(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", content(3))
    await plan(bench, submitted, batch_file_bytes_max=100)
    assert await failure(bench, submitted) == ("file_too_large", 1)


class DyingStore(MemoryEventStore):
    """Takes some appends of chunks, in any order, and then no more: a crash in mid-planning."""

    chunks_left = 1_000_000
    skip: frozenset[int] = frozenset()

    async def append(
        self, event: Event, *, expected: int, event_id: EventId | None = None, **more: object
    ) -> Recorded:
        if isinstance(event, ChunkPlanned):
            if self.chunks_left == 0 or event.chunk in self.skip:
                raise EventStoreUnavailable("gone")
            self.chunks_left -= 1
        return await super().append(event, expected=expected, event_id=event_id)


@pytest.mark.parametrize("survivors", [0, 1, 2, 4])
@pytest.mark.parametrize("requests_max", [4, 3, 7])
async def test_after_a_crash_the_whole_file_is_covered_once_whatever_the_limits_are_now(
    bench: OrchestratorBench, survivors: int, requests_max: int
) -> None:
    bench.store = store = DyingStore(clock=bench.clock)
    submitted = await bench.submit("a", content(22))
    store.chunks_left, store.skip = survivors, frozenset({1})
    with pytest.raises(EventStoreUnavailable):
        await plan(bench, submitted, chunk_requests_max=4)
    store.chunks_left, store.skip = 1_000_000, frozenset()
    await plan(bench, submitted, chunk_requests_max=requests_max)
    assert await covered(bench, submitted.job_id) == names(22)
    job = await bench.job(submitted.job_id)
    assert job.started is not None
    assert job.started.chunks == len(await bench.chunks(submitted.job_id))


async def test_two_planners_with_other_limits_make_one_plan(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", content(50))
    results = await asyncio.gather(
        plan(bench, submitted, chunk_requests_max=4),
        plan(bench, submitted, chunk_requests_max=7),
        return_exceptions=True,
    )
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, AlreadyDone) for result in results) == 1
    assert await covered(bench, submitted.job_id) == names(50)


async def test_a_job_cancelled_meanwhile_does_not_start(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", content(3))
    await bench.job_command(submitted.job_id, Cancel())
    with pytest.raises(Rejected):
        await plan(bench, submitted)


async def test_a_plan_that_contradicts_the_log_is_not_recorded(bench: OrchestratorBench) -> None:
    submitted = await bench.submit("a", content(10))
    await plan(bench, submitted)
    first, second, *_ = [chunk.planned for chunk in await bench.chunks(submitted.job_id)]
    other = await bench.submit("b", content(10))
    for one in (first, second):
        moved = ChunkPlanned(
            job_id=other.job_id, chunk=one.chunk, blob="files/file-b", offset=one.offset + 1,
            length=one.length, first_line=one.first_line, count=one.count,
            endpoint=one.endpoint, model=one.model, cut=one.cut,
        )  # fmt: skip
        await bench.store.append(moved, expected=0)
    with pytest.raises(Exception, match="is planned as") as refusal:
        await plan(bench, other)
    assert not isinstance(refusal.value, Conflict)
    assert (await bench.job(other.job_id)).status is JobStatus.VALIDATING
