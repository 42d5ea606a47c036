"""Events of a tool outside that may read events over NATS.

The password itself is never recorded, only its bcrypt hash, which is what nats-server takes.
"""

from __future__ import annotations

from typing import ClassVar

from vllm_batch.events.base import Event


class _ToolEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("tool_key",)
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"password_hash"})

    tool_key: str
    name: str
    requested_by: str


class ToolGranted(_ToolEvent, frozen=True, kw_only=True):
    """The tool may hear the events under ``subjects`` and nothing else."""

    TYPE: ClassVar[str] = "tool.granted"

    subjects: list[str]
    password_hash: str


class ToolRevoked(_ToolEvent, frozen=True, kw_only=True):
    """The tool may not connect any more."""

    TYPE: ClassVar[str] = "tool.revoked"


ToolEvent = ToolGranted | ToolRevoked
