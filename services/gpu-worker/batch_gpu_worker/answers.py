"""Reading what goes to an engine and what comes back, without touching more than has to be."""

from __future__ import annotations

import msgspec

from batch_gpu_worker.engines.base import error_body
from vllm_batch.events import Usage

_NOT_FOR_BATCHES = frozenset({"stream", "stream_options", "priority"})
_TEXT_CHARACTERS_MAX = 2000


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """Most endpoints say prompt and completion; /v1/responses says input and output."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Answer(msgspec.Struct, gc=False):
    usage: _Usage | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NOTHING_USED = Usage()
_NO_DETAILS = _Details()


class NotAnAnswer(ValueError):
    """The engine's body is not a JSON object in UTF-8."""


def fit_for_batch(body: bytes) -> bytes:
    """Return a request body that asks for one whole answer, and takes the turn that all batch
    requests take; the other values stay byte for byte."""
    # Letters of a name may be escaped: \u0070riority is no less a priority.
    if b'"stream' not in body and b'"priority"' not in body and b"\\u00" not in body:
        return body
    fields = _object_decoder.decode(body)
    if _NOT_FOR_BATCHES.isdisjoint(fields):
        return body
    return msgspec.json.encode({k: v for k, v in fields.items() if k not in _NOT_FOR_BATCHES})


def asking_for(model: str, body: bytes) -> bytes:
    """Return a request body that names ``model``; the other values stay byte for byte."""
    fields = _object_decoder.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def usage_of(body: bytes) -> Usage:
    """Return the tokens that an answer says it used; none where it does not say.

    Raises:
        NotAnAnswer: it cannot be put into a line of JSON.
    """
    try:
        if not body.isascii():
            body.decode()
        used = _answer_decoder.decode(body).usage
    except msgspec.ValidationError:
        _check_object(body)  # valid JSON with a usage of a shape of its own
        return _NOTHING_USED
    except (ValueError, RecursionError) as error:
        raise NotAnAnswer(f"not a JSON object: {error}") from error
    if used is None:
        return _NOTHING_USED
    entered = used.prompt_tokens_details or used.input_tokens_details or _NO_DETAILS
    left = used.completion_tokens_details or used.output_tokens_details or _NO_DETAILS
    return Usage(
        used.prompt_tokens or used.input_tokens or 0,
        entered.cached_tokens or 0,
        used.completion_tokens or used.output_tokens or 0,
        left.reasoning_tokens or 0,
    )


def error_of(status: int, body: bytes) -> bytes:
    """Return an engine's error body as it is, or in an error object where it is something else."""
    text = body.decode(errors="replace")
    try:
        body.decode()
        fields = _object_decoder.decode(body)
        if "error" in fields:
            return body
        text = msgspec.json.decode(fields["detail"], type=str)  # FastAPI's own errors
    except (KeyError, ValueError, RecursionError):
        pass
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = text[:_TEXT_CHARACTERS_MAX] or f"HTTP {status}"
    return error_body(message, code=f"http_{status}", kind=kind)


def _check_object(body: bytes) -> None:
    try:
        _object_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotAnAnswer(f"not a JSON object: {error}") from error
