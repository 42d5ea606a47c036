"""What every event is: a frozen struct that knows its type, version and aggregate."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fact. Never renamed, never edited: a new version and an upcaster instead.

    ``TYPE`` is ``<noun>.<verb_past>``; ``AGGREGATE`` names the fields that identify the aggregate,
    so that the subject is ``<noun>.<verb>.<id>[.<sub id>]``.
    """

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1
    AGGREGATE: ClassVar[tuple[str, ...]]

    def aggregate_id(self) -> tuple[str, ...]:
        """Return the id tokens of the aggregate this event belongs to."""
        return tuple(str(getattr(self, name)) for name in self.AGGREGATE)


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens used by successful requests."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )
