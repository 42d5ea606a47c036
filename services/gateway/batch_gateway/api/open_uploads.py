"""Bytes that open uploads may still bring: declared, and kept free for them.

An upload's parts are stored before there is a file, so without this they would count against no
quota for as long as the upload is open.
"""

from __future__ import annotations

from vllm_batch.clock import Clock
from vllm_batch.events import Recorded
from vllm_batch.events.upload import UploadCancelled, UploadCompleted, UploadCreated
from vllm_batch.ids import ProjectId, UploadId


class OpenUploads:
    """Folded from ``upload.>`` after ``position``: what was opened before has expired."""

    def __init__(self, clock: Clock, position: int = 0) -> None:
        self.position = position
        self._clock = clock
        self._open: dict[UploadId, UploadCreated] = {}

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in."""
        self.position = recorded.seq
        self.note(recorded)

    def note(self, recorded: Recorded) -> None:
        """Take in an event of this process before it comes back from the log."""
        match recorded.event:
            case UploadCreated() as created:
                self._forget_expired()
                self._open[created.upload_id] = created
            case UploadCompleted(upload_id=ended) | UploadCancelled(upload_id=ended):
                self.end(ended)

    def end(self, upload_id: UploadId) -> None:
        """Count an upload no more: it has become a file, or was given up."""
        self._open.pop(upload_id, None)

    def declared_bytes(self, project: ProjectId, *, besides: UploadId | None = None) -> int:
        """Return what the open uploads of ``project`` declared, but for the one ``besides``."""
        self._forget_expired()
        return sum(
            one.bytes
            for one in self._open.values()
            if one.project == project and one.upload_id != besides
        )

    def _forget_expired(self) -> None:
        now = self._clock.now().timestamp()
        self._open = {key: one for key, one in self._open.items() if one.expires_at >= now}
