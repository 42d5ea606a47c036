"""Whatever goes wrong on a page, its user is told and the page goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from nicegui import background_tasks
from tests.unit.admin_ui.conftest import Shown

from batch_admin import audit
from vllm_batch.errors import BatchError, EventStoreUnavailable, Rejected


async def _until(told: list[str], count: int) -> None:
    async with asyncio.timeout(10):
        while len(told) < count:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Rejected("no such batch"), "no such batch"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (KeyError("x"), "'x'"),
    ],
)
async def test_who_acts_is_told_what_went_wrong_and_so_is_the_log(
    shown: Shown, error: Exception, words: str
) -> None:
    async def deed() -> str:
        raise error

    assert not await shown.view.act("cancel a batch", "batch_1", deed)
    assert shown.said == [f"Could not cancel a batch: {words}"]
    assert await shown.audited() == [("cancel a batch", words)]


async def test_who_acts_is_told_although_the_log_is_away(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise EventStoreUnavailable("NATS does not answer")

    async def deed() -> str:
        monkeypatch.setattr(audit, "failed", away)
        raise EventStoreUnavailable("NATS does not answer")

    assert not await shown.view.act("cancel a batch", "batch_1", deed)
    assert shown.said == ["Could not cancel a batch: NATS does not answer"]


async def test_a_page_stays_live_after_an_error_that_it_tells_of_once(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_admin.view._CATCH_UP_SECONDS", 0.01)
    errors: list[BaseException | None] = [
        KeyError("x"), KeyError("x"), Rejected("later"), None, ValueError("y")
    ]  # fmt: skip
    tried: list[str] = []

    async def refresh(_: object) -> None:
        tried.append("it")
        if errors and (error := errors.pop(0)):
            raise error

    shown.view.refresh_on({"job"}, refresh, seconds=0, idle_seconds=0.01)
    await _until(tried, 6)
    told = "This page is not up to date: "
    assert shown.said == [f"{told}'x'", f"{told}y"]


async def test_what_fails_beside_is_told(shown: Shown) -> None:
    async def read() -> AsyncIterator[int]:
        yield 1
        raise BatchError("the read models are away")

    async def reading() -> None:
        async for _ in read():
            pass

    shown.view.keep(reading())
    await _until(shown.said, 1)
    background_tasks.create(reading(), context=shown.view._client)  # as handlers of buttons are
    await _until(shown.said, 2)
    assert shown.said == ["Something went wrong: the read models are away"] * 2
