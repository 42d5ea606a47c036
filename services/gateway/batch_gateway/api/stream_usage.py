"""What a streamed answer used: asked of the engine for every stream, whoever wants to see it.

An engine says what a stream of completions used only when ``stream_options.include_usage`` is set,
in one event at its end (`OpenAI's reference <https://platform.openai.com/docs/api-reference>`_). So
the option is always set, and the event is kept from clients that did not ask for it. vLLM moves the
``system_fingerprint`` from the event before into that one (seen with 0.32); it is moved back, so
that the client gets byte for byte what the engine would have sent. Of several choices (``n``) only
the last to end has it. A stream that ends early is counted as a token for each event that came.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

EVENT_BYTES_MAX = 4 * 1024 * 1024
_ASKABLE = frozenset({"/v1/chat/completions", "/v1/completions"})
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_USAGE = b'"usage"'
_DONE = b"data: [DONE]"
_FINISHED = re.compile(rb'"finish_reason":\s*"')
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
    system_fingerprint: str | None = None
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
    fields["stream_options"] = {
        **options, "include_usage": True, "continuous_usage_stats": False
    }  # fmt: skip
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
        self._finished = b""
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
        return b"".join(map(self._pass, _split(begun[:end])))

    def end(self, *, broken: bool) -> bytes:
        """Return what was kept back when the stream has ended; of a ``broken`` one whole events."""
        rest = b"" if broken else self._begun
        finished, self._finished, self._begun = self._finished, b"", b""
        return finished + rest

    def _pass(self, event: bytes) -> bytes:
        """Return what may go on now that ``event`` is there."""
        self._events += event.startswith(b"data:") and not event.startswith(_DONE)
        before, self._finished = self._finished, b""
        if _USAGE in event:
            said = _said_in(event)
            self._said = _tokens_of(said) or self._said
            if self._hidden and said.usage and said.choices == []:
                return _stamped(before, said.system_fingerprint)
        if self._hidden and _FINISHED.search(event):
            self._finished = event
            return before
        return before + event


def _stamped(event: bytes, fingerprint: str | None) -> bytes:
    """Return the event with the fingerprint of its engine, where it has none."""
    if not fingerprint or b'"system_fingerprint"' in event or b"}" not in event:
        return event
    head, _, end = event.rpartition(b"}")
    return b'%b,"system_fingerprint":%b}%b' % (head, msgspec.json.encode(fingerprint), end)


def _split(events: bytes) -> list[bytes]:
    """Return each event with what ends it."""
    mark = _BOUNDARIES[1] if _BOUNDARIES[1] in events else _BOUNDARIES[0]
    *whole, rest = events.split(mark)
    return [*(event + mark for event in whole), *([rest] if rest else [])]


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
