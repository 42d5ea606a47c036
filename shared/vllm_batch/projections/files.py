"""Read model ``file``. A deleted file keeps its row, marked: it may still be a list's cursor."""

from __future__ import annotations

import msgspec

from vllm_batch.errors import ProjectionError
from vllm_batch.events import Event, FileCreated, FileDeleted, FileUploaded, Recorded
from vllm_batch.projections.rows import FileRow
from vllm_batch.projections.table import Key, Table


def evolve(row: FileRow | None, recorded: Recorded) -> FileRow:
    """Return the row after ``recorded``.

    Raises:
        ProjectionError: the log has a deletion but no file before it.
    """
    event = recorded.event
    now = int(recorded.time.timestamp())
    if isinstance(event, FileUploaded | FileCreated):
        return FileRow(
            seq=recorded.seq,
            file_id=event.file_id,
            project=event.project,
            filename=event.filename,
            purpose=event.purpose,
            bytes=event.bytes,
            lines=event.lines,
            blob=event.blob,
            created_at=now,
            expires_at=event.expires_at,
        )
    if row is None:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) belongs to no known file")
    return msgspec.structs.replace(row, deleted_at=max(now, row.created_at))


def _keys(event: Event) -> list[Key]:
    return [event.aggregate_id()]


TABLE = Table(
    name="file",
    row=FileRow,
    key=("file_id",),
    events=(FileUploaded, FileCreated, FileDeleted),
    first=FileUploaded | FileCreated,
    keys=_keys,
    evolve=lambda row, recorded, _key: evolve(row, recorded),
)
