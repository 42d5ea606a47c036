"""A page that is open ends with the sign-in of its user, whatever ends that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.admin_ui.conftest import LASTS, Shown

from batch_admin import view as view_module
from batch_admin.sessions import Sessions
from vllm_batch import admin_users
from vllm_batch.events.admin import (
    AdminActionTaken,
    AdminPasswordChanged,
    AdminUserCreated,
    AdminUserRemoved,
)
from vllm_batch.settings import Settings


async def _new_password(shown: Shown) -> None:
    await shown.record(AdminPasswordChanged(user_id="user_1", password_hash="another"))


async def _removed(shown: Shown) -> None:
    await shown.record(AdminUserRemoved(user_id="user_1"))


async def _signed_out(shown: Shown) -> None:
    event = AdminActionTaken(
        user_id="user_1", action_id="action_2", name="otto", action=admin_users.SIGN_OUT,
        target="action_1",
    )  # fmt: skip
    await shown.record(event)


async def _expired(shown: Shown) -> None:
    shown.clock.advance(LASTS.total_seconds())
    # That clock wakes nobody: an event of somebody else has the page look at it.
    await shown.record(
        AdminUserCreated(user_id="user_2", name="vera", role="viewer", password_hash="hash")
    )


ENDS = (_new_password, _removed, _signed_out, _expired)


@pytest.mark.parametrize("end", ENDS)
async def test_who_is_signed_out_does_nothing_more(
    shown: Shown, end: Callable[[Shown], Awaitable[None]]
) -> None:
    done: list[str] = []

    async def deed() -> str:
        done.append("it")
        return ""

    assert await shown.view.act("cancel a batch", "batch_1", deed)
    await end(shown)
    assert not await shown.view.act("cancel a batch", "batch_1", deed)
    assert done == ["it"]
    assert shown.said == ["You may not cancel a batch: you are signed out."]
    assert ("cancel a batch", "refused: you are signed out") in await shown.audited()
    assert not shown.view.may("viewer")


@pytest.mark.parametrize("end", ENDS)
async def test_a_page_goes_to_the_sign_in_and_reads_no_more(
    shown: Shown,
    end: Callable[[Shown], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view_module, "_LEAVE_SECONDS", 0.0)
    read: list[int] = []

    async def refresh(events: object) -> None:
        read.append(1)

    shown.view.refresh_on({"admin"}, refresh, seconds=0)
    shown.view.leave_when_signed_out()
    await asyncio.sleep(0)
    await end(shown)
    async with asyncio.timeout(10):
        while not shown.went or shown.view._client.elements:
            await asyncio.sleep(0.01)
    assert shown.went == ["/login"]
    assert read == []


async def test_what_somebody_else_does_ends_no_sign_in(shown: Shown) -> None:
    shown.view.leave_when_signed_out()
    event = AdminActionTaken(
        user_id="user_1", action_id="action_2", name="otto", action=admin_users.SIGN_OUT,
        target="action_of_another_browser",
    )  # fmt: skip
    await shown.record(event)
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert shown.went == []
    assert shown.view.may("operator")


async def test_a_cookie_counts_until_its_sign_in_ends(shown: Shown) -> None:
    sessions = Sessions(Settings(admin_session_seconds=3600), shown.live.users, shown.clock)
    cookie = sessions.cookie_of(shown.user, "action_1")
    found = sessions.sign_in_of(cookie)
    assert found is not None
    assert found.user(shown.live.users, shown.clock.now()) == shown.user
    assert sessions.sign_in_of(cookie + "x") is None
    assert sessions.sign_in_of(sessions._signer.dumps(["user_1", 1])) is None
    await _signed_out(shown)
    assert sessions.sign_in_of(cookie) is None
