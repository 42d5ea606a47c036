"""One chunk's part of the output and error files: its results in input order, nothing parsed.

Reads the chunk's segments and, where requests never ran, its byte range of the input file.
"""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple

import msgspec
import structlog

from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.batch_file import error_line, parse_request, request_lines
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobMissing
from vllm_batch.events.job import Outcome
from vllm_batch.segments import Result, decode_segment

log = structlog.get_logger(__name__)

_NEVER_RAN: dict[Outcome | Literal["stuck"], tuple[str, str]] = {
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request ran."),
    "expired": ("batch_expired", "The completion window closed before this request ran."),
    "stuck": (
        "batch_stuck",
        (
            "This request was given to workers several times and none of them made any progress; "
            "the watchdog gave it up."
        ),
    ),
    "completed": ("result_lost", "The request ran, but its result could not be found."),
}


class Merged(NamedTuple):
    """A chunk's lines of both files, by the requests' index. ``failed`` counts only requests that
    ran, or were given up as stuck."""

    output: dict[int, bytes]
    errors: dict[int, bytes]
    failed: int


async def merge_chunk(blobs: BlobStore, chunk: Chunk, outcome: Outcome) -> Merged:
    """Return the chunk's lines.

    Raises:
        BlobError: a segment cannot be read.
    """
    results = await _results(blobs, chunk)
    ran = chunk.completed + chunk.failed
    found = sum(result is not None for result in results)
    if found != ran:
        log.error(
            "results and counts differ",
            job=chunk.planned.job_id, chunk=chunk.planned.chunk, counted=ran, found=found,
        )  # fmt: skip
    lost, stuck = chunk.status is ChunkStatus.COMPLETED, chunk.closed == "stuck"
    if found < len(results):
        ended = "completed" if lost else "stuck" if stuck else outcome
        missing = await _never_ran(blobs, chunk, results, _NEVER_RAN[ended])
    else:
        missing = {}
    return _split(results, missing, count_missing=lost or stuck)


async def _results(blobs: BlobStore, chunk: Chunk) -> list[Result | None]:
    """Return the chunk's results by index, None for requests without."""
    segments = await asyncio.gather(
        *(blobs.get(segment.blob, length=segment.bytes) for segment in chunk.segments)
    )
    results: list[Result | None] = [None] * chunk.planned.count
    for segment in segments:
        for result in decode_segment(segment):
            if results[result.index] is None:
                results[result.index] = result
            else:
                log.error(
                    "a request has two results: the first stays",
                    job=chunk.planned.job_id, chunk=chunk.planned.chunk, index=result.index,
                )  # fmt: skip
    return results


async def _never_ran(
    blobs: BlobStore, chunk: Chunk, results: list[Result | None], why: tuple[str, str]
) -> dict[int, bytes]:
    """Return an error line for each request without a result; ``why``: its code and message."""
    planned = chunk.planned
    code, message = why
    try:
        data = await blobs.get(planned.blob, start=planned.offset, length=planned.length)
    except BlobMissing:
        log.error("input file is gone: unanswered requests cannot be named", job=planned.job_id)
        return {}
    lines: dict[int, bytes] = {}
    for index, (line, result) in enumerate(zip(request_lines(data), results, strict=True)):
        if result is None:
            lines[index] = error_line(
                planned.job_id,
                planned.chunk,
                index,
                custom_id=_custom_id(line),
                code=code,
                message=message,
            )
    return lines


def _custom_id(line: bytes) -> str:
    try:
        return parse_request(line).custom_id
    except msgspec.DecodeError:
        log.exception("a planned line cannot be read")
        return ""


def _split(
    results: list[Result | None], missing: dict[int, bytes], *, count_missing: bool
) -> Merged:
    output: dict[int, bytes] = {}
    errors: dict[int, bytes] = {}
    failed = 0
    for index, result in enumerate(results):
        if result is None:
            failed += count_missing
            if line := missing.get(index):
                errors[index] = line
        elif result.failed:
            failed += 1
            errors[index] = result.line
        else:
            output[index] = result.line
    return Merged(output, errors, failed)
