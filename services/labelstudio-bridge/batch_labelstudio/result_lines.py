"""The lines that a push works on: results beside the requests they answer, read as streams.

Reads the log (where a batch's files are) and the blob store. Output files keep the order of their
input, so both are read side by side in constant memory. A file that was uploaded belongs to no
batch: its lines are results that bring the ``body`` of their request along.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from batch_labelstudio.task_mapping import Line
from vllm_batch import ids
from vllm_batch.aggregates import job as job_rules
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import NotFound
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import FileCreated, FileDeleted, FileUploaded
from vllm_batch.ids import JobId
from vllm_batch.messaging import subjects


@dataclass(frozen=True, slots=True)
class Files:
    """Blobs of results and of the requests they answer (None: not known)."""

    results: str
    requests: str | None


async def files_of(store: EventStore, source: str) -> Files:
    """Return where the results of a batch are, or those in a file.

    Raises:
        NotFound: there is no such batch or file, or it has no results; the message says which.
    """
    if not ids.is_token(source):
        raise NotFound(f"{source[:80]} is neither a batch nor a file")
    if not source.startswith("batch_"):
        file = await _file(store, source)
        if isinstance(file, FileCreated):
            return await files_of_job(store, file.job_id, file.blob)
        return Files(file.blob, None)
    return await files_of_job(store, JobId(source), None)


async def files_of_job(store: EventStore, job_id: JobId, results: str | None) -> Files:
    """Return a batch's files; ``results``: the blob of its output, where it is known.

    Raises:
        NotFound: there is no such batch, or it has no results.
    """
    job, _ = await fold(store, subjects.job(job_id), job_rules.evolve)
    if job is None:
        raise NotFound(f"there is no batch {job_id}")
    if job.ended is None or job.ended.output_file_id is None:
        raise NotFound(f"batch {job_id} is {job.status} and has no results")
    requests = await _file(store, job.submitted.input_file_id)
    if results is None:
        results = (await _file(store, job.ended.output_file_id)).blob
    return Files(results, requests.blob)


async def lines_of(files: Files, blobs: BlobStore) -> AsyncIterator[Line | str]:
    """Yield every result; for a line that is none, a sentence that says so.

    Raises:
        BlobError: a file cannot be read.
    """
    requests = _raw_lines(blobs, files.requests) if files.requests else None
    number = 0
    async with aclosing(_raw_lines(blobs, files.results)) as results:  # type: ignore[type-var]
        async for raw in results:
            number += 1
            found = _object(raw)
            custom_id = found.get("custom_id") if found else None
            if found is None or not isinstance(custom_id, str):
                yield f"line {number} is no result of a request"
                continue
            body = await _body_of(requests, custom_id) if requests else found.get("body")
            yield Line(custom_id, body, found.get("response"), found.get("error"))


async def _body_of(requests: AsyncIterator[bytes], custom_id: str) -> Any:
    async for raw in requests:
        request = _object(raw)
        if request and request.get("custom_id") == custom_id:
            return request.get("body")
    return None


async def _file(store: EventStore, file_id: str) -> FileUploaded | FileCreated:
    file: FileUploaded | FileCreated | None = None
    async for batch in store.read(subjects.aggregate("file", file_id)):
        for recorded in batch:
            if isinstance(recorded.event, FileDeleted):
                raise NotFound(f"file {file_id} is deleted")
            if isinstance(recorded.event, FileUploaded | FileCreated):
                file = recorded.event
    if file is None:
        raise NotFound(f"there is no file {file_id}")
    return file


async def _raw_lines(blobs: BlobStore, key: str) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in blobs.stream(key):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
