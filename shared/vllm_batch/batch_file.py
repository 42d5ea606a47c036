"""The lines of a batch file and of its results: read by planner, worker and finalizer, written once
each.

Lines end at ``\\n`` only; blank lines are no requests. A request is known by its chunk and its
index among the chunk's requests (from 0). What a body holds is passed on byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from vllm_batch.ids import JobId

BOM = b"\xef\xbb\xbf"

# str.splitlines() breaks at these although JSON allows them raw inside strings; escapes mean the
# same.
_LINE_BREAKS = (
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
    (b"\xc2\x85", rb"\u0085"),
)


class RequestLine(msgspec.Struct, frozen=True):
    """One valid line of a batch file."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Response(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _ResultLine(msgspec.Struct, frozen=True):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


_request_decoder = msgspec.json.Decoder(RequestLine)
_encoder = msgspec.json.Encoder()


def request_lines(chunk: bytes) -> Iterator[bytes]:
    """Yield the request lines of a chunk's byte range, without line ends."""
    for line in chunk.split(b"\n"):
        if line and (stripped := line.strip()):
            yield stripped


def parse_request(line: bytes) -> RequestLine:
    """Decode a line that the planner has found valid.

    Raises:
        msgspec.DecodeError: it is not valid after all.
        RecursionError: it is nested deeper than this process allows.
    """
    return _request_decoder.decode(line)


def result_id(job_id: JobId, chunk: int, index: int) -> str:
    """Return the id of a result line: the same however often the request is tried."""
    return f"batch_req_{job_id.removeprefix('batch_')}-{chunk:x}-{index:x}"


def response_line(
    job_id: JobId, chunk: int, index: int, *, custom_id: str, status_code: int, request_id: str,
    body: bytes,
) -> bytes:  # fmt: skip
    """Return the result line of a request that was answered; ``body`` is the engine's JSON, kept as
    it is."""
    if b"\n" in body or b"\r" in body:
        body = msgspec.json.format(body, indent=-1)
    response = _Response(status_code, request_id, msgspec.Raw(body))
    return _line(_ResultLine(result_id(job_id, chunk, index), custom_id, response, None))


def error_line(
    job_id: JobId, chunk: int, index: int, *, custom_id: str, code: str, message: str
) -> bytes:
    """Return the result line of a request that never ran or never got an answer."""
    error = _Error(code, message)
    return _line(_ResultLine(result_id(job_id, chunk, index), custom_id, None, error))


def _line(result: _ResultLine) -> bytes:
    line = _encoder.encode(result)
    for raw, escaped in _LINE_BREAKS:
        if raw in line:
            line = line.replace(raw, escaped)
    return line + b"\n"
