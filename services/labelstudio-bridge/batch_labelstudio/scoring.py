"""How sure a model was of its answer, from the log-probabilities of the answer's tokens. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_DECODER = json.JSONDecoder()


class Token(NamedTuple):
    """What a token wrote, and the logarithm of its probability."""

    written: bytes
    logprob: float


def score(text: str, tokens: Sequence[Token], names: Sequence[str]) -> float | None:
    """Return the geometric mean of the probabilities of the tokens that wrote the values of the
    properties ``names`` in the JSON ``text``, in [0, 1].

    Braces, names and quotes are not the model's choice and do not count. None where the tokens are
    not those of the text, or none of them wrote a value.
    """
    content = text.encode()
    if not b"".join(token.written for token in tokens).startswith(content):
        return None
    ranges = [bounds for name in names if (bounds := _bounds(text, name))]
    counted = [
        token.logprob
        for start, token in _placed(tokens)
        if any(start < end and start + len(token.written) > first for first, end in ranges)
    ]
    if not counted or not all(math.isfinite(logprob) for logprob in counted):
        return None
    return min(1.0, math.exp(sum(counted) / len(counted)))


def _placed(tokens: Sequence[Token]) -> Iterator[tuple[int, Token]]:
    start = 0
    for token in tokens:
        yield start, token
        start += len(token.written)


def _bounds(text: str, name: str) -> tuple[int, int] | None:
    """Return first and last byte (exclusive) of a property's value, without quotes."""
    for spelling in (json.dumps(name, ensure_ascii=False), json.dumps(name)):
        if match := re.search(re.escape(spelling) + r"\s*:\s*", text):
            value, end = _DECODER.raw_decode(text, match.end())
            quotes = int(isinstance(value, str))
            return len(text[: match.end() + quotes].encode()), len(text[: end - quotes].encode())
    return None
