"""When backups were made: each is on record in the log, after it is whole.

Writes and reads ``admin.action_taken`` of the user ``cli`` with the action ``backup``.
"""

from __future__ import annotations

from datetime import datetime

from vllm_batch import ids
from vllm_batch.event_store import EventStore
from vllm_batch.events.admin import AdminActionTaken
from vllm_batch.messaging import subjects

USER = "cli"
ACTION = "backup"


async def note(store: EventStore, folder: str, *, made_by: str) -> None:
    """Record that a backup is whole.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    event = AdminActionTaken(
        user_id=USER, action_id=ids.new("action_"), name=made_by, action=ACTION, target=folder
    )
    await store.append(event, expected=0)


async def last(store: EventStore) -> datetime | None:
    """Return when the last one was recorded, None if never.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    newest: datetime | None = None
    async for batch in store.read(subjects.aggregate("admin", USER, "*")):
        for recorded in batch:
            event = recorded.event
            if isinstance(event, AdminActionTaken) and event.action == ACTION:
                newest = recorded.time
    return newest
