"""A page without a browser: a user's view of it, over a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from nats.aio.client import Client as NatsClient
from nicegui import Client, core, ui
from nicegui.page import page

from batch_admin.live import Live
from batch_admin.services import Services
from batch_admin.sessions import SignIn
from batch_admin.view import View
from vllm_batch.admin_users import AdminUser
from vllm_batch.clock import ManualClock
from vllm_batch.errors import BlobMissing
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import Event
from vllm_batch.events.admin import (
    AdminActionFailed,
    AdminActionTaken,
    AdminUserCreated,
)
from vllm_batch.messaging import subjects

LASTS = timedelta(hours=1)


@dataclass
class Shown:
    """A page of ``view``; ``said``: what the user was told, ``went``: where the page was sent."""

    view: View
    user: AdminUser
    store: MemoryEventStore
    live: Live
    reads: Any
    clock: ManualClock
    said: list[str] = field(default_factory=list)
    went: list[str] = field(default_factory=list)

    async def record(self, *events: Event) -> None:
        """Append, and let the page hear of it."""
        for event in events:
            found = [r async for batch in self.store.read(_subject(event)) for r in batch]
            recorded = await self.store.append(event, expected=found[-1].seq if found else 0)
            self.live._apply(recorded)

    async def audited(self) -> list[tuple[str, str | None]]:
        """Return what the user did, and why it failed."""
        found: dict[str, tuple[str, str | None]] = {}
        async for batch in self.store.read(subjects.ALL_ADMIN):
            for recorded in batch:
                match recorded.event:
                    case AdminActionTaken(action_id=one, action=action):
                        found[one] = (action, None)
                    case AdminActionFailed(action_id=one, reason=reason):
                        found[one] = (found[one][0], reason)
        return list(found.values())


def _subject(event: Event) -> str:
    return subjects.aggregate(event.TYPE.partition(".")[0], *event.aggregate_id())


@pytest.fixture
async def shown(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shown]:
    monkeypatch.setattr(core, "loop", asyncio.get_running_loop())
    store, clock = MemoryEventStore(), ManualClock(datetime(2026, 1, 31, 12, tzinfo=UTC))
    live = Live(store, NatsClient(), clock)
    made = AdminUserCreated(user_id="user_1", name="otto", role="operator", password_hash="hash")
    live._apply(await store.append(made, expected=0))
    user = live.users.find("user_1")
    assert user is not None
    reads = SimpleNamespace(wait_for=AsyncMock(return_value=True))
    blobs = SimpleNamespace(get=AsyncMock(side_effect=BlobMissing("it was purged")))
    services = SimpleNamespace(store=store, live=live, clock=clock, reads=reads, blobs=blobs)
    sign_in = SignIn("action_1", user.user_id, user.session_seq, clock.now() + LASTS)
    with Client(page("/")) as client:
        view = View(cast(Services, services), sign_in, user, {}, {})
    found = Shown(view, user, store, live, reads, clock)
    monkeypatch.setattr(ui, "notify", lambda text, **_: found.said.append(text))
    monkeypatch.setattr(ui.navigate, "to", cast(Any, found.went.append))
    yield found
    client.delete()
