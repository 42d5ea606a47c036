"""Every action of a user becomes an event before it is done; a failure becomes a second one."""

from __future__ import annotations

from vllm_batch import ids
from vllm_batch.admin_users import AdminUser
from vllm_batch.event_store import EventStore
from vllm_batch.events.admin import AdminActionFailed, AdminActionTaken

_REASON_CHARACTERS_MAX = 500


async def taken(store: EventStore, user: AdminUser, action: str, target: str) -> tuple[str, int]:
    """Record what ``user`` is about to do; return the action's id and sequence.

    Raises:
        EventStoreUnavailable: it could not be recorded, so it must not be done.
    """
    event = AdminActionTaken(
        user_id=user.user_id,
        action_id=ids.new("action_"),
        name=user.name,
        action=action,
        target=target,
    )
    recorded = await store.append(event, expected=0)
    return event.action_id, recorded.seq


async def failed(store: EventStore, user: AdminUser, action: tuple[str, int], reason: str) -> None:
    """Record that an action did not come about."""
    action_id, seq = action
    event = AdminActionFailed(
        user_id=user.user_id, action_id=action_id, reason=reason[:_REASON_CHARACTERS_MAX]
    )
    await store.append(event, expected=seq)
