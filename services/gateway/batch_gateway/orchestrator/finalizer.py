"""Writes a job's output and error files in input order and ends the job.

Reads segments chunk by chunk, a few ahead, and streams both files at once, so memory does not grow
with the job; where chunks are not in the order of the file, their lines are put back into it on the
local disk. Records ``file.created`` and the job's end. Ids, keys and contents follow from the job
alone: two finalizers write the same files, and the log takes each event once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from batch_gateway.orchestrator import arrangement
from batch_gateway.orchestrator.lanes import Lanes
from batch_gateway.orchestrator.merging import Merged, merge_chunk
from batch_gateway.orchestrator.reordering import Lines, in_file_order
from batch_gateway.orchestrator.spool import Spool
from vllm_batch import ids
from vllm_batch.aggregates import job as rules
from vllm_batch.aggregates.chunk import Chunk
from vllm_batch.aggregates.job import Job
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import Clock
from vllm_batch.errors import BatchError, Conflict, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import FileCreated, Usage
from vllm_batch.ids import FileId
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

CHUNKS_AHEAD = 4
PIECES_QUEUED_MAX = 2

Kind = Literal["output", "error"]


@dataclass(slots=True)
class _Totals:
    completed: int = 0
    failed: int = 0
    error_lines: int = 0


class _FileWriter:
    """One file on its way to the store: written while it is put together."""

    def __init__(self, blobs: BlobStore, job: Job, kind: Kind) -> None:
        self.file_id: FileId = ids.output_file_id(job.job_id, kind)
        self.filename = f"{job.job_id}_{kind}.jsonl"
        self.blob = f"files/{self.file_id}"
        self.bytes = 0
        self._blobs = blobs
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(PIECES_QUEUED_MAX)

    async def add(self, lines: bytes) -> None:
        """Take more of the file; waits while the store is slower."""
        if lines:
            self.bytes += len(lines)
            await self._queue.put(lines)

    async def finish(self) -> None:
        """Say that this was all."""
        await self._queue.put(None)

    async def run(self) -> None:
        """Write what is added until it is finished; raises what the blob store raises."""
        await self._blobs.put_stream(self.blob, self._pieces())

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (piece := await self._queue.get()) is not None:
            yield piece


class Finalizer:
    """Ends any number of jobs at once."""

    def __init__(
        self, store: EventStore, blobs: BlobStore, clock: Clock, *, spool_directory: Path
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._spool_directory = spool_directory
        self._lanes = Lanes()

    async def finish(self, job: Job, seq: int, chunks: list[Chunk]) -> int:
        """Write the files of a finalizing job and end it; return the sequence of its end. ``seq``:
        the job's last one.

        Raises:
            AlreadyDone: another finalizer was faster.
            EventStoreError, BlobError: try again.
        """
        if job.started is None:  # it ended before it began: no requests, no files
            chunks = []
        size = sum(segment.bytes for chunk in chunks for segment in chunk.segments)
        async with self._lanes.of(max(size, sum(chunk.planned.length for chunk in chunks))):
            try:
                written, totals = await self._write(job, chunks)
            except* BatchError as group:
                raise group.exceptions[0] from group
        await asyncio.gather(
            *(self._record(job, writer, lines) for writer, lines in written.values())
        )
        finish = rules.Finish(
            total=job.started.total if job.started else 0,
            completed=totals.completed,
            failed=totals.failed,
            usage=sum((chunk.usage for chunk in chunks), Usage()),
            output_file_id=written["output"][0].file_id if "output" in written else None,
            error_file_id=written["error"][0].file_id if "error" in written else None,
        )
        recorded, _ = await append_decided(
            self._store,
            subjects.job(job.job_id),
            rules.evolve,
            lambda state: rules.decide(state, finish),
            known=(job, seq),
        )
        log.info(
            "job ended", job=job.job_id, outcome=job.outcome, total=finish.total,
            completed=totals.completed, failed=totals.failed,
        )  # fmt: skip
        return recorded.seq

    async def _write(
        self, job: Job, chunks: list[Chunk]
    ) -> tuple[dict[Kind, tuple[_FileWriter, int]], _Totals]:
        """Write the files that have lines; return them with their number of lines."""
        totals = _Totals()
        writers: dict[Kind, _FileWriter] = {}
        async with asyncio.TaskGroup() as group:

            async def add(kind: Kind, lines: bytes) -> None:
                if lines and kind not in writers:
                    writers[kind] = _FileWriter(self._blobs, job, kind)
                    group.create_task(writers[kind].run())
                if lines:
                    await writers[kind].add(lines)

            async with aclosing(self._in_file_order(job, chunks, totals)) as parts:
                async for lines in parts:
                    await add("output", lines.output)
                    await add("error", lines.errors)
            for writer in writers.values():
                await writer.finish()
        counts: dict[Kind, int] = {"output": totals.completed, "error": totals.error_lines}
        return {kind: (writer, counts[kind]) for kind, writer in writers.items()}, totals

    async def _in_file_order(
        self, job: Job, chunks: list[Chunk], totals: _Totals
    ) -> AsyncGenerator[Lines]:
        """Yield the lines of both files, bit by bit; count them in ``totals``."""
        cut = chunks[0].planned.cut if chunks else None
        async with aclosing(self._merged(job, chunks, totals)) as parts:
            if cut is None or cut.arrangement is None:
                async for merged in parts:
                    output, errors = merged.output.values(), merged.errors.values()
                    yield Lines(b"".join(output), b"".join(errors))
                return
            order = (await arrangement.read(self._blobs, cut.arrangement)).order
            with Spool(self._spool_directory) as spool:
                async for lines in in_file_order(parts, chunks, order, spool):
                    yield lines

    async def _merged(
        self, job: Job, chunks: list[Chunk], totals: _Totals
    ) -> AsyncGenerator[Merged]:
        """Yield the chunks' parts in order; a few are being read ahead."""
        if job.outcome is None:
            raise Rejected(f"job {job.job_id} is {job.status}, not finalizing")
        reading: list[asyncio.Task[Merged]] = []
        remaining = iter(chunks)
        try:
            while True:
                while len(reading) < CHUNKS_AHEAD and (chunk := next(remaining, None)):
                    merge = merge_chunk(self._blobs, chunk, job.outcome)
                    reading.append(asyncio.create_task(merge))
                if not reading:
                    return
                merged = await reading[0]
                totals.completed += len(merged.output)
                totals.failed += merged.failed
                totals.error_lines += len(merged.errors)
                yield merged
                reading.pop(0)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def _record(self, job: Job, writer: _FileWriter, lines: int) -> None:
        now = self._clock.now()
        after = job.submitted.output_expires_after_seconds
        event = FileCreated(
            file_id=writer.file_id,
            project=job.submitted.project,
            job_id=job.job_id,
            filename=writer.filename,
            purpose="batch_output",
            bytes=writer.bytes,
            lines=lines,
            blob=writer.blob,
            expires_at=int(now.timestamp()) + after if after is not None else None,
        )
        try:
            await self._store.append(event, expected=0, at=now)
        except Conflict:
            return  # a finalizer before this one recorded the same file
