"""Closes projects for good: keys, uploads, webhooks, batches, files. Restartable: each step looks
what is left to do.

Follows ``project.purge_requested``; appends ``apikey.revoked``, ``upload.cancelled``,
``webhook.endpoint_deleted``, ``job.cancel_requested`` and ``file.deleted`` for what the project
has, and at the end ``project.purged``. Deletes result segments; blobs of deleted files and parts of
cancelled uploads are deleted by `retention`.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from batch_gateway.orchestrator import arrangement
from batch_gateway.webhooks import ledger as ledgers
from vllm_batch import api_keys
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.job import Cancel
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import AlreadyDone, Conflict, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import (
    ApiKeyCreated,
    ApiKeyRevoked,
    Event,
    FileCreated,
    FileDeleted,
    FileUploaded,
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    JobSubmitted,
    UploadCancelled,
    UploadCompleted,
    UploadCreated,
    UploadPartAdded,
)
from vllm_batch.events.project import ProjectPurged, ProjectPurgeRequested
from vllm_batch.events.webhook import WebhookEndpointDeleted
from vllm_batch.ids import FileId, JobId, KeyId, ProjectId, UploadId
from vllm_batch.messaging import subjects
from vllm_batch.segments import segments_prefix

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
SETTLE_SECONDS = 2.0
"""A gateway may be about to record what it let in before it heard of the purge."""


class Purge:
    """The duty."""

    def __init__(self, store: EventStore, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs

    async def run(self) -> None:
        """Close for ever what is to be closed."""
        pending: dict[ProjectId, ProjectPurgeRequested] = {}
        position = 0
        async for batch in self._store.read(subjects.ALL_PROJECTS):
            for recorded in batch:
                position = recorded.seq
                match recorded.event:
                    case ProjectPurgeRequested() as asked:
                        pending[asked.project] = asked
                    case ProjectPurged(project=project):
                        pending.pop(project, None)
        for asked in pending.values():
            await self._close(asked)
        async for batch in self._store.follow([subjects.ALL_PROJECTS], after=position):
            for recorded in batch:
                if isinstance(recorded.event, ProjectPurgeRequested):
                    await self._close(recorded.event)

    async def _close(self, asked: ProjectPurgeRequested) -> None:
        project = asked.project
        await self._revoke_keys(asked)
        await asyncio.sleep(SETTLE_SECONDS)
        await self._cancel_uploads(project)
        await self._delete_webhooks(asked)
        jobs = await self._end_jobs(project)
        await self._delete_segments(jobs)
        files = await self._delete_files(project)
        purged = ProjectPurged(
            project_key=asked.project_key, project=project, requested_by=asked.requested_by,
            files=files, batches=len(jobs),
        )  # fmt: skip
        await self._append(purged)
        log.info("project purged", project=project, files=files, batches=len(jobs))

    async def _append(self, event: Event) -> None:
        subject = subjects.of_aggregate(event)
        await append_decided(self._store, subject, lambda _, __: None, lambda _: event)

    async def _revoke_keys(self, asked: ProjectPurgeRequested) -> None:
        project = asked.project
        keys: set[KeyId] = set()
        async for batch in self._store.read(subjects.ALL_API_KEYS):
            for recorded in batch:
                match recorded.event:
                    case ApiKeyCreated() as created if created.project == project:
                        keys.add(created.key_id)
                    case ApiKeyRevoked(key_id=key_id):
                        keys.discard(key_id)
        for key_id in keys:
            try:
                await api_keys.revoke(self._store, key_id, requested_by=asked.requested_by)
            except AlreadyDone:
                continue

    async def _cancel_uploads(self, project: ProjectId) -> None:
        open_uploads: dict[UploadId, int] = {}
        async for batch in self._store.read(subjects.ALL_UPLOADS):
            for recorded in batch:
                match recorded.event:
                    case UploadCreated() as created if created.project == project:
                        open_uploads[created.upload_id] = recorded.seq
                    case UploadPartAdded(upload_id=upload_id) if upload_id in open_uploads:
                        open_uploads[upload_id] = recorded.seq
                    case UploadCompleted() | UploadCancelled() as end:
                        open_uploads.pop(end.upload_id, None)
        for upload_id, seq in open_uploads.items():
            with contextlib.suppress(Conflict):  # completed just now: its file is deleted next
                await self._store.append(UploadCancelled(upload_id=upload_id), expected=seq)

    async def _delete_webhooks(self, asked: ProjectPurgeRequested) -> None:
        ledger = await ledgers.load(self._store)
        for endpoint in ledger.of_project(asked.project):
            event = WebhookEndpointDeleted(
                endpoint_id=endpoint.endpoint_id, requested_by=asked.requested_by
            )
            await self._append(event)

    async def _end_jobs(self, project: ProjectId) -> set[JobId]:
        """Cancel what is open and wait until all has ended; return the project's batches."""
        while True:
            jobs, open_jobs = await self._jobs(project)
            if not open_jobs:
                return jobs
            for job_id in open_jobs:
                await self._cancel(job_id)
            await asyncio.sleep(LOOK_SECONDS)

    async def _delete_segments(self, jobs: set[JobId]) -> None:
        """Delete results that were not needed any more, and would have been kept for a while."""
        for folder, prefix_of in (("segments", segments_prefix), ("plans", arrangement.prefix_of)):
            there = {key.split("/")[1] async for key in self._blobs.list(folder)}
            for job_id in jobs & there:
                await self._blobs.delete_all(prefix_of(job_id))

    async def _jobs(self, project: ProjectId) -> tuple[set[JobId], set[JobId]]:
        jobs: set[JobId] = set()
        ended: set[JobId] = set()
        async for batch in self._store.read(subjects.ALL_JOBS):
            for recorded in batch:
                match recorded.event:
                    case JobSubmitted() as submitted if submitted.project == project:
                        jobs.add(submitted.job_id)
                    case JobCompleted() | JobExpired() | JobCancelled() | JobFailed() as end:
                        ended.add(end.job_id)
        return jobs, jobs - ended

    async def _cancel(self, job_id: JobId) -> None:
        try:
            await append_decided(
                self._store,
                subjects.job(job_id),
                job_rules.evolve,
                lambda state: job_rules.decide(state, Cancel()),
            )
        except (AlreadyDone, Rejected):
            return  # it is ending already

    async def _delete_files(self, project: ProjectId) -> int:
        files: dict[FileId, int] = {}
        deleted = 0
        async for batch in self._store.read(subjects.ALL_FILES):
            for recorded in batch:
                match recorded.event:
                    case FileUploaded() | FileCreated() as made if made.project == project:
                        files[made.file_id] = recorded.seq
                    case FileDeleted(file_id=file_id) if files.pop(file_id, None):
                        deleted += 1
        for file_id, seq in files.items():
            try:
                await self._store.append(
                    FileDeleted(file_id=file_id, reason="requested"), expected=seq
                )
            except Conflict:
                continue  # somebody else has just deleted it
        return deleted + len(files)
