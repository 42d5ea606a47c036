"""What a streamed answer used: asked of the engine for every stream, whoever wants to see it.

An engine says what a stream of completions used only when ``stream_options.include_usage`` is set,
in one event at its end (`OpenAI's reference <https://platform.openai.com/docs/api-reference>`_). So
the option is always set, and the event is kept from clients that did not ask for it: what they get
is byte for byte what the engine would have sent. A stream that ends before that event is counted
as a token for each event that came.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

EVENT_BYTES_MAX = 4 * 1024 * 1024
_ASKABLE = frozenset({"/v1/chat/completions", "/v1/completions"})
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_USAGE = b'"usage"'
_DONE = b"data: [DONE]"
_BOUNDARIES = (b"\n\n", b"\r\n\r\n")


class Tokens(NamedTuple):
    """What a request used."""

    input: int = 0
    output: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Said(msgspec.Struct):
    usage: _Usage | None = None
    response: _Said | None = None
    choices: list[msgspec.Raw] | None = None


class _Wish(msgspec.Struct):
    stream: Any = None
    stream_options: Any = None


def with_usage(endpoint: str, body: bytes) -> tuple[bytes, bool]:
    """Return ``body`` so that a stream says what it used, and whether it did not ask for that.

    ``body`` is a JSON object; what is no stream, or has options that are none, stays as it is.
    """
    if endpoint not in _ASKABLE:
        return body, False
    wish = msgspec.json.decode(body, type=_Wish)
    options = {} if wish.stream_options is None else wish.stream_options
    if not _means_true(wish.stream) or not isinstance(options, dict):
        return body, False
    if _means_true(options.get("include_usage")):
        return body, False
    fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode(fields), True


def tokens_in(answer: bytes) -> Tokens | None:
    """Return the tokens that an answer, or one event of it, speaks of."""
    return _tokens_of(_said_in(answer))


class StreamUsage:
    """Reads a stream as it passes. ``hidden``: the event that only speaks of usage is kept back.

    Whole events pass; what is longer than EVENT_BYTES_MAX passes in pieces.
    """

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._begun = b""
        self._events = 0
        self._said: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """What the stream has said, or at least used, so far."""
        return self._said or Tokens(0, self._events)

    def feed(self, piece: bytes) -> bytes:
        """Take what has come; return what may go on, which may be nothing yet."""
        begun = self._begun + piece
        end = max(
            place + len(mark) if (place := begun.rfind(mark)) >= 0 else 0 for mark in _BOUNDARIES
        )
        if not end and len(begun) > EVENT_BYTES_MAX:
            end = len(begun)
        self._begun = begun[end:]
        return self._passing(begun[:end])

    def rest(self) -> bytes:
        """Return what came after the last whole event, when the stream has ended."""
        rest, self._begun = self._begun, b""
        return self._passing(rest)

    def _passing(self, events: bytes) -> bytes:
        self._events += events.count(b"data: ") - events.count(_DONE)
        if _USAGE not in events:
            return events
        return b"".join(event for event in _split(events) if not self._is_kept_back(event))

    def _is_kept_back(self, event: bytes) -> bool:
        said = _said_in(event)
        tokens = _tokens_of(said)
        if tokens is None:
            return False
        self._said = tokens
        return self._hidden and said.choices == []


def _split(events: bytes) -> list[bytes]:
    """Return each event with what ends it."""
    mark = _BOUNDARIES[1] if _BOUNDARIES[1] in events else _BOUNDARIES[0]
    *whole, rest = events.split(mark)
    return [*(event + mark for event in whole), rest]


def _said_in(answer: bytes) -> _Said:
    for text in (answer, *answer.splitlines()):
        with suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(text.removeprefix(b"data:"), type=_Said)
    return _Said()


def _tokens_of(said: _Said) -> Tokens | None:
    used = said.usage or (said.response and said.response.usage)
    if not used:
        return None
    return Tokens(
        used.prompt_tokens or used.input_tokens or 0,
        used.completion_tokens or used.output_tokens or 0,
    )


def _means_true(value: object) -> bool:
    """Tell whether an engine takes ``value`` for true (vLLM reads booleans as Pydantic does)."""
    return str(value).lower() in _TRUE or value == 1
