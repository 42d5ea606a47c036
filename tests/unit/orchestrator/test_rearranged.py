"""From a file to its output, whatever the order in between: every line once, where it belongs.

Any file, planned by planners that crash at any point and go on with other settings, answered in any
pieces, comes out in its own order.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.orchestrator.bench import OrchestratorBench, job_submitted

from batch_gateway.orchestrator.finalizer import Finalizer
from batch_gateway.orchestrator.model_names import RecordedNames
from batch_gateway.orchestrator.planner import Planner
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.chunk import Close
from vllm_batch.aggregates.job import Finalize, Job, JobStatus
from vllm_batch.batch_file import parse_request, request_lines
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobError, EventStoreUnavailable
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import ChunkPlanned, Event, Recorded
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects

MIXED = {"allow_mixed_models": "true"}


def line(custom_id: str, model: str = "m", prompt: str = "") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    fields = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps(fields | {"body": body}).encode()


class CrashingStore(MemoryEventStore):
    """Refuses appends of chunks from the ``chunks_left``-th on."""

    chunks_left = 1_000_000

    async def append(self, event: Event, *, expected: int, **more: Any) -> Recorded:
        if isinstance(event, ChunkPlanned):
            if self.chunks_left == 0:
                raise EventStoreUnavailable("crashed")
            self.chunks_left -= 1
        return await super().append(event, expected=expected, **more)


class CrashingBlobs:
    """Refuses to store anything from the ``puts_left``-th blob on."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.puts_left = 1_000_000

    def __getattr__(self, name: str) -> Any:
        if name in {"put", "put_stream"}:
            if self.puts_left == 0:
                raise BlobError("crashed")
            self.puts_left -= 1
        return getattr(self._blobs, name)


class Bench(OrchestratorBench):
    """Plans and finishes jobs as an orchestrator with ``overrides`` does."""

    def crash_after(self, puts: int, chunks: int) -> None:
        self.store = CrashingStore(clock=self.clock)
        self.store.chunks_left = chunks
        self.blobs = CrashingBlobs(self.blobs)  # type: ignore[assignment]
        self.blobs.puts_left = puts  # type: ignore[attr-defined]

    def repair(self) -> None:
        self.store.chunks_left = 1_000_000  # type: ignore[attr-defined]
        self.blobs.puts_left = 1_000_000  # type: ignore[attr-defined]

    async def plan(
        self, job_id: JobId, *, aliases: dict[str, str] | None = None, **overrides: Any
    ) -> None:
        job, seq = await fold(self.store, subjects.job(job_id), job_rules.evolve)
        assert job is not None
        limits = self.settings.model_copy(update=overrides)
        await Planner(self.store, self.blobs, limits, RecordedNames(aliases or {})).plan(job, seq)

    async def finish(self, job_id: JobId) -> Job:
        await self.job_command(job_id, Finalize())
        job, seq = await fold(self.store, subjects.job(job_id), job_rules.evolve)
        assert job is not None
        finalizer = Finalizer(
            self.store, self.blobs, self.clock, spool_directory=self.home / "spool"
        )
        await finalizer.finish(job, seq, await self.chunks(job_id))
        return await self.job(job_id)

    async def requests_of(self, number: int, job_id: JobId) -> list[bytes]:
        planned = (await self.chunks(job_id))[number].planned
        data = await self.blobs.get(planned.blob, start=planned.offset, length=planned.length)
        return [one.removeprefix(b"\xef\xbb\xbf") for one in request_lines(data) if one.strip()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def answer(bench: Bench, job_id: JobId, failing: set[str]) -> None:
    """Answer every request in two segments, the last first; ``failing`` by custom_id."""
    for number, chunk in enumerate(await bench.chunks(job_id)):
        custom_ids = [
            parse_request(one).custom_id for one in await bench.requests_of(number, job_id)
        ]
        assert len(custom_ids) == chunk.planned.count
        await bench.lease(job_id, number)
        results = {at: custom_ids[at] in failing for at in reversed(range(len(custom_ids)))}
        await bench.hand_in(job_id, number, {at: results[at] for at in results if at % 2})
        await bench.hand_in(
            job_id, number, {at: results[at] for at in results if not at % 2}, end=True
        )


FILES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "best"]),
        st.integers(0, 2),
        st.sampled_from([0, 300, 1500]),
        st.sampled_from([b"\n", b"\r\n", b"\n \n\n"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)
SETTINGS = st.fixed_dictionaries(
    {
        "chunk_requests_max": st.integers(1, 9),
        "chunk_bytes_max": st.sampled_from([1024, 8192, 1 << 20]),
        "prefix_grouping": st.booleans(),
        "prefix_gain_min": st.sampled_from([0.01, 0.3]),
    }
)


@settings(max_examples=60)
@given(
    FILES,
    st.lists(SETTINGS, min_size=2, max_size=2),
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(st.integers(0, 3), st.integers(0, 8)),
)
def test_every_line_comes_out_once_and_in_its_place(
    lines: list[tuple[str, int, int, bytes, bool]],
    limits: list[dict[str, Any]],
    ends: tuple[bool, bool],
    crash_after: tuple[int, int],
) -> None:
    bom, newline_at_the_end = ends
    content = b"".join(
        line(f"r{at}", model, chr(65 + kind) * size + str(at)) + end
        for at, (model, kind, size, end, _) in enumerate(lines)
    )
    content = b"\xef\xbb\xbf" * bom + (content if newline_at_the_end else content.rstrip())

    async def story(bench: Bench) -> None:
        await bench.upload("j", content)
        blobs, store = bench.blobs, bench.store
        bench.crash_after(*crash_after)
        for recorded in [one async for batch in store.read("file.>") for one in batch]:
            await bench.store.append(recorded.event, expected=0)
        submitted = job_submitted("j", metadata=MIXED)
        await bench.store.append(submitted, expected=0)
        job_id = submitted.job_id
        try:
            await bench.plan(job_id, aliases={"best": "b"}, **limits[0])
        except (EventStoreUnavailable, BlobError):
            bench.repair()
            # Meanwhile the settings are others, and so is what the alias means.
            await bench.plan(job_id, aliases={"best": "a"}, **limits[1])
        bench.repair()
        bench.blobs = blobs
        meant = {chunk.planned.alias: chunk.planned.model for chunk in await bench.chunks(job_id)}
        meant.pop(None, None)
        assert len(set(meant.values())) <= 1
        for number, chunk in enumerate(await bench.chunks(job_id)):
            for one in await bench.requests_of(number, job_id):
                asked = json.loads(one)["body"]["model"]
                assert asked == (chunk.planned.alias or chunk.planned.model)
        failing = {f"r{at}" for at, (*_, fails) in enumerate(lines) if fails}
        await answer(bench, job_id, failing)
        job = await bench.finish(job_id)
        assert job.ended is not None
        output = [row["custom_id"] for row in await bench.file_lines(job.ended.output_file_id)]
        errors = [row["custom_id"] for row in await bench.file_lines(job.ended.error_file_id)]
        names = [f"r{at}" for at in range(len(lines))]
        assert output == [name for name in names if name not in failing]
        assert errors == [name for name in names if name in failing]

    with tempfile.TemporaryDirectory() as home:
        asyncio.run(story(Bench(Path(home))))


async def test_requests_of_one_prefix_are_in_one_chunk(bench: Bench) -> None:
    """Four prompts in turn: each chunk has one of them, and says which."""
    lines = [line(f"r{at}", prompt=chr(65 + at % 4) * 2000 + str(at)) for at in range(32)]
    submitted = await bench.submit("j", b"\n".join(lines))
    await bench.plan(submitted.job_id, chunk_requests_max=8)
    chunks = [chunk.planned for chunk in await bench.chunks(submitted.job_id)]
    assert [planned.count for planned in chunks] == [8, 8, 8, 8]
    assert len({planned.prefix for planned in chunks if planned.prefix}) == 4
    assert {planned.prefix.bytes for planned in chunks if planned.prefix} == {1024}
    assert [planned.first_line for planned in chunks] == [1, 2, 3, 4]


async def test_grouping_by_prefix_can_be_turned_off(bench: Bench) -> None:
    lines = [line(f"r{at}", prompt=chr(65 + at % 4) * 2000) for at in range(32)]
    submitted = await bench.submit("j", b"\n".join(lines))
    await bench.plan(submitted.job_id, prefix_grouping=False)
    (chunk,) = await bench.chunks(submitted.job_id)
    assert chunk.planned.blob == "files/file-j"


async def test_without_leave_a_second_model_is_an_error_that_says_how_to_mix(bench: Bench) -> None:
    submitted = await bench.submit("j", line("a", "a") + b"\n" + line("b", "b"))
    await bench.plan(submitted.job_id)
    job = await bench.job(submitted.job_id)
    assert job.failed is not None
    assert job.failed.errors[0].code == "mismatched_model"
    assert "allow_mixed_models" in job.failed.errors[0].message


async def test_requests_that_never_ran_are_named_in_the_order_of_the_file(bench: Bench) -> None:
    lines = [line(f"r{at}", "ab"[at % 2]) for at in range(8)]
    submitted = await bench.submit("j", b"\n".join(lines), metadata=MIXED)
    job_id = submitted.job_id
    await bench.plan(job_id)
    await bench.lease(job_id, 0)
    await bench.hand_in(job_id, 0, {0: False, 3: True})
    await bench.job_command(job_id, job_rules.Cancel())
    for number in (0, 1):
        await bench.chunk_command(job_id, number, Close("cancelled"))
    job = await bench.finish(job_id)
    assert job.status is JobStatus.CANCELLED
    assert job.ended is not None
    rows = await bench.file_lines(job.ended.error_file_id)
    assert [row["custom_id"] for row in rows] == [f"r{at}" for at in range(1, 8)]
    codes = Counter((row["error"] or {"code": "ran"})["code"] for row in rows)  # type: ignore[index]
    assert codes == {"batch_cancelled": 6, "ran": 1}


async def test_equal_orders_are_one_copy_and_other_orders_another(bench: Bench) -> None:
    """Two planners at once: what the slower one writes does not touch what workers read."""
    lines = [line(f"r{at}", "ab"[at % 2], chr(65 + at % 3) * 2000) for at in range(24)]
    submitted = await bench.submit("j", b"\n".join(lines), metadata=MIXED)
    plans = (
        bench.plan(submitted.job_id, prefix_grouping=grouping) for grouping in (True, False, True)
    )
    await asyncio.gather(*plans, return_exceptions=True)
    keys = [key async for key in bench.blobs.list("plans")]
    assert len(keys) == 4, "two orders, each with its requests"
    await answer(bench, submitted.job_id, set())
    job = await bench.finish(submitted.job_id)
    assert job.ended is not None
    rows = await bench.file_lines(job.ended.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"r{at}" for at in range(24)]
