"""Plans a job: reads its file once, validates every line, and puts its chunks on record.

Reads the file's events and blob; records ``chunk.planned`` per chunk and ``job.started``, or
``job.failed``. Nothing is recorded before the whole file is known to be valid. Where requests are
worked off in another order than the file's (see `arranging`), they are copied in that order first.
Chunk 0 is recorded first and says how the file was cut, in which order, and what aliases meant: a
second planner, or one after a crash, keeps to that, so both plan the same chunks and the file is
covered exactly once.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
import structlog

from batch_gateway.orchestrator import arrangement, spool
from batch_gateway.orchestrator.arrangement import Arrangement
from batch_gateway.orchestrator.arranging import arrange
from batch_gateway.orchestrator.cutting import Layout, Piece
from batch_gateway.orchestrator.lanes import Lanes
from batch_gateway.orchestrator.line_blocks import TooLong, line_blocks
from batch_gateway.orchestrator.model_names import Names, RecordedNames
from batch_gateway.orchestrator.request_index import RequestIndex
from batch_gateway.orchestrator.validation import Validator
from vllm_batch.aggregates import chunk as chunk_rules
from vllm_batch.aggregates import job as rules
from vllm_batch.aggregates.job import Job
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobMissing, Conflict, EventStoreError
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import (
    ChunkPlanned,
    Event,
    FileCreated,
    FileUploaded,
    JobSubmitted,
    LineError,
    Recorded,
)
from vllm_batch.events.chunk import Cut
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

APPENDS_AT_ONCE = 256


class Overtaken(Exception):
    """Another planner recorded chunk 0 before, cut in another way: plan again, its way."""

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut)
        self.cut = cut


class Planner:
    """Plans any number of jobs at once."""

    def __init__(
        self, store: EventStore, blobs: BlobStore, settings: Settings, names: Names
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._names = names
        self._lanes = Lanes()

    async def plan(self, job: Job, seq: int) -> int:
        """Plan the job or fail it; return the sequence of the event that says so. ``seq``: the
        job's last one.

        Raises:
            AlreadyDone, Rejected: the job has moved on: another planner, a cancel, its end.
            EventStoreError, BlobError: try again.
        """
        submitted = job.submitted
        file = await self._input_file(submitted)
        if file is None:
            message = f"The input file {submitted.input_file_id} was deleted."
            return await self._fail(job, seq, [LineError("file_not_found", message)], 1)
        if file.bytes > (limit := self._settings.batch_file_bytes_max):
            message = f"The file has {file.bytes} bytes; at most {limit} are allowed."
            return await self._fail(job, seq, [LineError("file_too_large", message)], 1)
        begun: Cut | None = None
        async with self._lanes.of(file.bytes):
            while True:
                try:
                    return await self._plan_file(job, seq, file.blob, begun)
                except Overtaken as overtaken:
                    begun = overtaken.cut
                    log.info("going on with another planner's plan", job=submitted.job_id)
                except BlobMissing:
                    message = f"The content of {submitted.input_file_id} is gone."
                    return await self._fail(job, seq, [LineError("file_not_found", message)], 1)

    async def _input_file(self, submitted: JobSubmitted) -> FileUploaded | FileCreated | None:
        def last(_: Event | None, recorded: Recorded) -> Event:
            return recorded.event

        subject = subjects.aggregate("file", submitted.input_file_id)
        event, _ = await fold(self._store, subject, last)
        return event if isinstance(event, FileUploaded | FileCreated) else None

    async def _plan_file(self, job: Job, seq: int, blob: str, begun: Cut | None) -> int:
        """``begun``: how another planner, whose plan this is to become, cut the file."""
        submitted = job.submitted
        names = self._names if begun is None else RecordedNames(begun.aliases)
        validator = Validator(
            self._settings,
            endpoint=submitted.endpoint,
            names=names,
            mixed=rules.mixes_models(submitted),
        )
        await self._validate(blob, validator)
        meant = {name: names.resolve(name) or name for name in validator.models}
        if not validator.valid:
            return await self._fail(job, seq, validator.errors, validator.error_count)
        aliases = {name: model for name, model in meant.items() if name != model}
        if begun is None:
            cut, pieces = await self._cut(job, blob, validator.index)
            cut = msgspec.structs.replace(cut, aliases=aliases)
        else:
            cut, pieces = begun, await self._cut_again(validator.index, begun)
        if cut.arrangement is not None:
            blob = arrangement.requests_key(cut.arrangement)
        events = _planned(submitted, blob, cut, pieces, list(meant.items()))
        await self._record(events)
        start = rules.Start(validator.count, len(events), events[0].model)
        recorded, _ = await append_decided(
            self._store,
            subjects.job(job.job_id),
            rules.evolve,
            lambda state: rules.decide(state, start),
            known=(job, seq),
        )
        log.info(
            "job planned", job=job.job_id, requests=validator.count, chunks=len(events),
            models=len(meant), arranged=cut.arrangement is not None,
        )  # fmt: skip
        return recorded.seq

    async def _cut(self, job: Job, blob: str, index: RequestIndex) -> tuple[Cut, list[Piece]]:
        """Decide on an order and cut; a copy in that order is in the blob store then."""
        settings = self._settings
        cut = Cut(settings.chunk_requests_max, settings.chunk_bytes_max)
        gain_min = settings.prefix_gain_min if settings.prefix_grouping else None
        order = await asyncio.to_thread(arrange, index, prefix_gain_min=gain_min)
        layout = Layout(index, order)
        counts = await asyncio.to_thread(layout.counts, cut)
        if order is not None:
            key = await arrangement.write(
                self._blobs, job.job_id, Arrangement(order, counts),
                source=blob, index=index, spool_directory=spool.directory_of(settings),
            )  # fmt: skip
            cut = msgspec.structs.replace(cut, arrangement=key)
        return cut, layout.pieces(counts)

    async def _cut_again(self, index: RequestIndex, begun: Cut) -> list[Piece]:
        """Cut as the planner did that began."""
        if begun.arrangement is None:
            layout = Layout(index, None)
            return layout.pieces(layout.counts(begun))
        arranged = await arrangement.read(self._blobs, begun.arrangement)
        return Layout(index, arranged.order).pieces(arranged.counts)

    async def _validate(self, blob: str, validator: Validator) -> None:
        blocks = line_blocks(
            self._blobs.stream(blob), line_bytes_max=self._settings.request_bytes_max
        )
        async with aclosing(blocks):
            async for block in blocks:
                if isinstance(block, TooLong):
                    validator.skip_long_line(block.length)
                else:
                    validator.feed(block)
                if validator.full:
                    break
                await asyncio.sleep(0)  # others get their turn between blocks
        validator.finish()

    async def _record(self, events: list[ChunkPlanned]) -> None:
        """Record the chunks: the first alone, the rest at once; those that are there stay."""
        await self._record_one(events[0])
        for start in range(1, len(events), APPENDS_AT_ONCE):
            batch = events[start : start + APPENDS_AT_ONCE]
            await asyncio.gather(*(self._record_one(event) for event in batch))

    async def _record_one(self, event: ChunkPlanned) -> None:
        try:
            await self._store.append(event, expected=0)
        except Conflict:
            subject = subjects.chunk(event.job_id, event.chunk)
            there, _ = await fold(self._store, subject, chunk_rules.evolve)
            if there is None or _covers_the_same(there.planned, event):
                return
            if there.planned.cut is not None and there.planned.cut != event.cut:
                raise Overtaken(there.planned.cut) from None
            raise EventStoreError(
                f"chunk {event.chunk} of {event.job_id} is planned as {there.planned}, "
                f"which is not {event}"
            ) from None

    async def _fail(self, job: Job, seq: int, errors: list[LineError], count: int) -> int:
        fail = rules.Fail(errors, count)
        recorded, _ = await append_decided(
            self._store,
            subjects.job(job.job_id),
            rules.evolve,
            lambda state: rules.decide(state, fail),
            known=(job, seq),
        )
        log.info("job failed", job=job.job_id, errors=count, first=errors[0].code)
        return recorded.seq


def _planned(
    submitted: JobSubmitted,
    blob: str,
    cut: Cut,
    pieces: list[Piece],
    meant: list[tuple[str, str]],
) -> list[ChunkPlanned]:
    """Return the chunks' events. ``meant``: what is asked for, and the model that this means."""
    events = []
    for number, piece in enumerate(pieces):
        name, model = meant[piece.model]
        events.append(
            ChunkPlanned(
                job_id=submitted.job_id,
                chunk=number,
                blob=blob,
                offset=piece.offset,
                length=piece.length,
                first_line=piece.first_line,
                count=piece.requests,
                endpoint=submitted.endpoint,
                model=model,
                cut=None if number else cut,
                alias=name if name != model else None,
                prefix=piece.prefix,
            )
        )
    return events


def _covers_the_same(there: ChunkPlanned, event: ChunkPlanned) -> bool:
    """Tell whether both are one plan's; what a release says of prefixes makes no difference."""
    return msgspec.structs.replace(there, prefix=event.prefix) == event
