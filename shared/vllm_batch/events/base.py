"""What every event is: a frozen struct that knows its type, version and aggregate."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

_EFFORT_DIGITS = 6


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fact. Never renamed, never edited: a new version and an upcaster instead.

    ``TYPE`` is ``<noun>.<verb_past>``; ``AGGREGATE`` names the fields that identify the aggregate,
    so that the subject is ``<noun>.<verb>.<id>[.<sub id>]``.
    """

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1
    AGGREGATE: ClassVar[tuple[str, ...]]
    HIDDEN: ClassVar[frozenset[str]] = frozenset()
    """Fields that the log needs and nobody else: hashes of passwords and keys."""

    def shown(self) -> dict[str, Any]:
        """Return the data as it may be shown to people and other programs."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in data.items() if name not in self.HIDDEN}

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


class Effort(msgspec.Struct, frozen=True, omit_defaults=True):
    """What answering took, failed tries included: the requests' shares of an engine that held
    others at the same time.

    ``gpu_seconds``: ``engine_seconds`` times the engine's GPUs, 0 without one. ``energy_joules``:
    what those GPUs drew, 0 where the driver does not say.
    """

    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.engine_seconds + other.engine_seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.energy_joules + other.energy_joules,
        )

    def rounded(self) -> Effort:
        """Return it with microseconds and microjoules, as events have it."""
        return Effort(
            round(self.engine_seconds, _EFFORT_DIGITS),
            round(self.gpu_seconds, _EFFORT_DIGITS),
            round(self.energy_joules, _EFFORT_DIGITS),
        )
