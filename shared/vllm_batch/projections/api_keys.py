"""Read model ``api_key``: for `keys list`. The gateway checks keys against the log, not against
this."""

from __future__ import annotations

import msgspec

from vllm_batch.errors import ProjectionError
from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked, ApiKeyRotated, Event, Recorded
from vllm_batch.projections.rows import ApiKeyRow
from vllm_batch.projections.table import Key, Table


def evolve(row: ApiKeyRow | None, recorded: Recorded) -> ApiKeyRow:
    """Return the row after ``recorded``.

    Raises:
        ProjectionError: the log has a revocation but no key before it.
    """
    event = recorded.event
    now = int(recorded.time.timestamp())
    if isinstance(event, ApiKeyCreated):
        return ApiKeyRow(
            seq=recorded.seq,
            key_id=event.key_id,
            project=event.project,
            name=event.name,
            prefix=event.prefix,
            sha256=event.sha256,
            created_at=now,
            scopes=event.scopes,
            expires_at=event.expires_at,
        )
    if row is None:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) belongs to no known key")
    if isinstance(event, ApiKeyRotated):
        return msgspec.structs.replace(
            row, prefix=event.prefix, sha256=event.sha256, rotated_at=max(now, row.created_at)
        )
    return msgspec.structs.replace(row, revoked_at=max(now, row.created_at))


def _keys(event: Event) -> list[Key]:
    return [event.aggregate_id()]


TABLE = Table(
    name="api_key",
    row=ApiKeyRow,
    key=("key_id",),
    events=(ApiKeyCreated, ApiKeyRotated, ApiKeyRevoked),
    first=ApiKeyCreated,
    keys=_keys,
    evolve=lambda row, recorded, _key: evolve(row, recorded),
)
