"""What a batch's requests came to: errors by their cause, and the newest results.

Reads segments while they are kept and the files of the batch after that; looks at a bounded part of
each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from batch_admin.services import Services
from vllm_batch import segments
from vllm_batch.errors import BlobMissing
from vllm_batch.events import FileCreated
from vllm_batch.ids import FileId
from vllm_batch.messaging import subjects

LINES_MAX = 20_000
EXAMPLES = 3
_TEXT_CHARACTERS = 400


@dataclass(slots=True)
class Cause:
    """Requests that failed alike. ``examples``: (custom_id, message)."""

    code: str
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a result, short enough to show."""

    custom_id: str
    status: int
    text: str


class Causes:
    """Why requests failed, counted from what was not looked at before."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._found: dict[str, Cause] = {}
        self._error_file_id: FileId | None = None

    async def of_segments(self, blobs: Iterable[str]) -> list[Cause]:
        """Look at new segments, too; return the causes, the most frequent one first."""
        for blob in blobs:
            for line in await _segment_lines(self._services, blob):
                _count(self._found, line)
        return self._sorted()

    async def of_file(self, error_file_id: FileId) -> list[Cause]:
        """Count a batch's error file instead, once; return the causes."""
        if error_file_id != self._error_file_id:
            self._error_file_id, self._found = error_file_id, {}
            async for line in _file_lines(self._services, error_file_id, LINES_MAX):
                _count(self._found, line)
        return self._sorted()

    def _sorted(self) -> list[Cause]:
        return sorted(self._found.values(), key=lambda cause: -cause.count)


async def newest(services: Services, blobs: Sequence[str], count: int) -> list[Result]:
    """Return the last ``count`` results of segments, the newest first; none of those that are
    gone."""
    found: list[Result] = []
    for blob in reversed(blobs):
        found += [_result(line) for line in reversed(await _segment_lines(services, blob))]
        if len(found) >= count:
            break
    return found[:count]


async def first(services: Services, output_file_id: FileId, count: int) -> list[Result]:
    """Return the first ``count`` lines of a batch's output file."""
    lines = _file_lines(services, output_file_id, count)
    return [_result(line) async for line in lines]


async def _segment_lines(services: Services, blob: str) -> list[bytes]:
    try:
        data = await services.blobs.get(blob)
    except BlobMissing:
        return []  # the batch is over, its segments were purged
    return [result.line for result in segments.decode_segment(data)]


async def _file_lines(services: Services, file_id: FileId, count: int) -> AsyncIterator[bytes]:
    """Yield up to ``count`` lines of a file that the system wrote."""
    blob = None
    async for batch in services.store.read(subjects.aggregate("file", file_id)):
        blob = next((r.event.blob for r in batch if isinstance(r.event, FileCreated)), blob)
    if blob is None:
        return
    rest, seen = b"", 0
    try:
        async for piece in services.blobs.stream(blob):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines[: count - seen]:
                yield line
            seen += len(lines)
            if seen >= count:
                return
    except BlobMissing:
        return  # it was deleted


def _count(found: dict[str, Cause], line: bytes) -> None:
    value = msgspec.json.decode(line)
    error = _error(value)
    if error is None:
        return
    code, message = error
    cause = found.setdefault(code, Cause(code))
    cause.count += 1
    if len(cause.examples) < EXAMPLES:
        cause.examples.append((str(value.get("custom_id", "")), message[:_TEXT_CHARACTERS]))


def _error(value: dict[str, Any]) -> tuple[str, str] | None:
    """Return the code and the message of a line that failed."""
    if error := value.get("error"):
        return str(error.get("code") or "error"), str(error.get("message", ""))
    response = value.get("response") or {}
    if response.get("status_code", 200) < 400:
        return None
    error = (response.get("body") or {}).get("error") or {}
    code = error.get("code") or error.get("type") or "error"
    return f"{response['status_code']} {code}", str(error.get("message", ""))


def _result(line: bytes) -> Result:
    value = msgspec.json.decode(line)
    response = value.get("response") or {}
    error = _error(value)
    text = error[1] if error else _answer(response.get("body") or {})
    status = int(response.get("status_code") or 0)
    return Result(str(value.get("custom_id", "")), status, text[:_TEXT_CHARACTERS])


def _answer(body: dict[str, Any]) -> str:
    """Return the text of an answer, whatever the endpoint."""
    for choice in body.get("choices") or ():
        return str((choice.get("message") or {}).get("content") or choice.get("text") or "")
    return msgspec.json.encode(body.get("output") or body.get("data") or body).decode()
