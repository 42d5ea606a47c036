"""A multi-part upload, folded from its events."""

from __future__ import annotations

import msgspec

from vllm_batch.errors import Rejected
from vllm_batch.events import (
    Recorded,
    UploadCancelled,
    UploadCompleted,
    UploadCreated,
    UploadPartAdded,
)
from vllm_batch.ids import PartId


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """State of an upload. ``created_at`` is in Unix seconds."""

    created: UploadCreated
    created_at: int
    parts: dict[PartId, UploadPartAdded] = {}
    completed: UploadCompleted | None = None
    cancelled: bool = False

    def status(self, now: float) -> str:
        """Return where it is at ``now`` (Unix seconds), in OpenAI's words."""
        if self.completed is not None:
            return "completed"
        if self.cancelled:
            return "cancelled"
        return "expired" if self.created.expires_at <= now else "pending"

    @property
    def bytes_received(self) -> int:
        """Sum of all parts, used or not."""
        return sum(part.bytes for part in self.parts.values())


def evolve(state: Upload | None, recorded: Recorded) -> Upload:
    """Return the state after ``recorded``.

    Raises:
        Rejected: the event is not one of an upload's, or has no upload before it.
    """
    event = recorded.event
    if isinstance(event, UploadCreated):
        return Upload(created=event, created_at=int(recorded.time.timestamp()))
    if state is None:
        raise Rejected(f"{event.TYPE} cannot be applied to no upload")
    replace = msgspec.structs.replace
    match event:
        case UploadPartAdded():
            return replace(state, parts={**state.parts, event.part_id: event})
        case UploadCompleted():
            return replace(state, completed=event)
        case UploadCancelled():
            return replace(state, cancelled=True)
    raise Rejected(f"{event.TYPE} cannot be applied to an upload")
