"""Deletes what has had its time: expired files, blobs of deleted files, segments and rearranged
requests of ended jobs, parts of uploads that are over, and batches with their output.

Records ``file.deleted{expired}`` and ``job.retired``; deletes blobs only of what the log says is
over. Blobs that the log knows nothing of are left alone: somebody may be writing them just now.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from enum import IntEnum

import structlog

from batch_gateway.orchestrator import arrangement
from batch_gateway.orchestrator.board import Board
from vllm_batch import tasks
from vllm_batch.aggregates import job as job_rules
from vllm_batch.blobs import BlobStore
from vllm_batch.clock import Clock
from vllm_batch.errors import AlreadyDone, BatchError, Conflict
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import (
    FileCreated,
    FileDeleted,
    FileUploaded,
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobRetired,
    Recorded,
    UploadCancelled,
    UploadCompleted,
    UploadCreated,
)
from vllm_batch.ids import FileId, JobId
from vllm_batch.messaging import subjects
from vllm_batch.segments import segments_prefix
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

UPLOAD_SLACK_SECONDS = 60.0
_POSTPONED_SECONDS = 60.0
_LOOK_SECONDS = 300.0
_ENDS = (JobCompleted, JobExpired, JobCancelled, JobFailed, JobRetired)
"""The last one after the others: `_load` reads them one by one."""


class Kind(IntEnum):
    """What is due."""

    FILE_EXPIRES = 0
    FILE_BLOB = 1
    SEGMENTS = 2
    UPLOAD_PARTS = 3
    BATCH = 4


Due = tuple[float, Kind, str]


class Retention:
    """A heap of deletions, filled from the log."""

    def __init__(
        self, board: Board, store: EventStore, blobs: BlobStore, settings: Settings, clock: Clock
    ) -> None:
        self._board = board
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._segment_retention_seconds = settings.segment_retention_seconds
        self._batch_retention_seconds = settings.batch_retention_seconds
        self._due: list[Due] = []
        self._more = asyncio.Event()

    async def run(self) -> None:
        """Delete for ever."""
        self._due = []
        position = await self._store.last_sequence()
        await self._load()
        await tasks.first_to_end(self._follow(position), self._sweep_for_ever())

    async def _load(self) -> None:
        """Find what is due of what is there: the log's past may be long, the blobs' is not."""
        dues: dict[tuple[Kind, str], float] = {}
        for subject in _subjects():
            async for batch in self._store.read(subject):
                for recorded in batch:
                    self._take_in(recorded, dues)
        kept = {
            Kind.FILE_BLOB: await self._names_below("files"),
            Kind.SEGMENTS: await self._names_below("segments") | await self._names_below("plans"),
            Kind.UPLOAD_PARTS: await self._names_below("uploads"),
        }
        self._due = [
            (due, kind, name)
            for (kind, name), due in dues.items()
            if kind not in kept or name in kept[kind]
        ]
        heapq.heapify(self._due)

    async def _names_below(self, folder: str) -> set[str]:
        return {key.split("/")[1] async for key in self._blobs.list(folder)}

    async def _follow(self, position: int) -> None:
        async for batch in self._store.follow(_subjects(), after=position):
            dues: dict[tuple[Kind, str], float] = {}
            for recorded in batch:
                self._take_in(recorded, dues)
            for (kind, name), due in dues.items():
                heapq.heappush(self._due, (due, kind, name))
            self._more.set()

    def _take_in(self, recorded: Recorded, dues: dict[tuple[Kind, str], float]) -> None:
        event, at = recorded.event, recorded.time.timestamp()
        match event:
            case FileUploaded() | FileCreated():
                if event.expires_at is not None:
                    dues[Kind.FILE_EXPIRES, event.file_id] = float(event.expires_at)
            case FileDeleted():
                dues.pop((Kind.FILE_EXPIRES, event.file_id), None)
                dues[Kind.FILE_BLOB, event.file_id] = at
            case JobCompleted() | JobExpired() | JobCancelled() | JobFailed():
                dues[Kind.SEGMENTS, event.job_id] = at + self._segment_retention_seconds
                if self._batch_retention_seconds:
                    dues[Kind.BATCH, event.job_id] = at + self._batch_retention_seconds
            case JobRetired():
                dues.pop((Kind.BATCH, event.job_id), None)
            case UploadCreated():
                due = event.expires_at + UPLOAD_SLACK_SECONDS
                dues[Kind.UPLOAD_PARTS, event.upload_id] = due
            case UploadCompleted() | UploadCancelled():
                dues[Kind.UPLOAD_PARTS, event.upload_id] = at + UPLOAD_SLACK_SECONDS

    async def _sweep_for_ever(self) -> None:
        while True:
            await self.sweep()
            pause = _LOOK_SECONDS
            if self._due:
                pause = min(max(self._due[0][0] - self._clock.now().timestamp(), 0.01), pause)
            try:
                async with asyncio.timeout(pause):
                    await self._more.wait()
            except TimeoutError:
                continue
            self._more.clear()

    async def sweep(self) -> None:
        """Delete everything whose time is up by now."""
        while self._due and self._due[0][0] <= self._clock.now().timestamp():
            _, kind, name = heapq.heappop(self._due)
            try:
                done = await self._delete(kind, name)
            except BatchError as error:
                log.warning("not deleted yet", kind=kind.name, name=name, error=str(error))
                done = False
            if not done:
                again = self._clock.now().timestamp() + _POSTPONED_SECONDS
                heapq.heappush(self._due, (again, kind, name))

    async def _delete(self, kind: Kind, name: str) -> bool:
        """Return whether it is done; False: it is still needed."""
        match kind:
            case Kind.FILE_EXPIRES | Kind.FILE_BLOB:
                file_id = FileId(name)
                if self._is_input(file_id):
                    return False
                await self._delete_file(file_id)
            case Kind.SEGMENTS:
                await self._blobs.delete_all(segments_prefix(JobId(name)))
                await self._blobs.delete_all(arrangement.prefix_of(JobId(name)))
            case Kind.BATCH:
                return await self._retire(JobId(name))
            case Kind.UPLOAD_PARTS:
                await self._blobs.delete_all(f"uploads/{name}")
        return True

    async def _retire(self, job_id: JobId) -> bool:
        """Delete what a batch has made, then say so; False: another batch reads some of it."""
        subject = subjects.job(job_id)
        job, _ = await fold(self._store, subject, job_rules.evolve)
        if job is None or job.retired:
            return True
        made = (job.ended.output_file_id, job.ended.error_file_id) if job.ended else ()
        files = [file_id for file_id in made if file_id is not None]
        if any(self._is_input(file_id) for file_id in files):
            return False
        for file_id in files:
            await self._delete_file(file_id)
        await self._delete(Kind.SEGMENTS, job_id)
        try:
            await append_decided(
                self._store, subject, job_rules.evolve,
                lambda state: job_rules.decide(state, job_rules.Retire()),
            )  # fmt: skip
        except AlreadyDone:
            return True
        log.info("batch retired", job=job_id)
        return True

    def _is_input(self, file_id: FileId) -> bool:
        jobs: Iterable[FileId] = (
            view.job.submitted.input_file_id for view in self._board.jobs.values()
        )
        return file_id in jobs

    async def _delete_file(self, file_id: FileId) -> None:
        blob: str | None = None
        seq, deleted = 0, False
        async for batch in self._store.read(subjects.aggregate("file", file_id)):
            for recorded in batch:
                event, seq = recorded.event, recorded.seq
                if isinstance(event, FileUploaded | FileCreated):
                    blob = event.blob
                deleted = isinstance(event, FileDeleted)
        if blob is None:
            return
        if not deleted:
            try:
                await self._store.append(
                    FileDeleted(file_id=file_id, reason="expired"), expected=seq
                )
            except Conflict:
                log.debug("deleted meanwhile", file=file_id)
            else:
                log.info("file expired", file=file_id)
        await self._blobs.delete(blob)


def _subjects() -> list[str]:
    ends = [subjects.every(end) for end in _ENDS]
    return [subjects.ALL_FILES, subjects.ALL_UPLOADS, *ends]
