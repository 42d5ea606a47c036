"""What was asked for last is what is shown, whatever comes late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tests.unit.admin_ui.conftest import Shown

from batch_admin import chat_stream
from batch_admin.chat_stream import Piece
from batch_admin.pages.playground import Side
from batch_admin.pages.usage import UsagePage
from vllm_batch.errors import Rejected
from vllm_batch.ids import ProjectId
from vllm_batch.projections.rows import UsageRow


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_that_comes_after_clear_is_of_no_chat(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    asked: list[list[dict[str, str]]] = []

    async def chat(_: object, body: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        asked.append(body["messages"])
        yield Piece(text="the answer")
        begun.set()
        await go_on.wait()
        if fails:
            raise Rejected("the engine broke off")

    monkeypatch.setattr(chat_stream, "chat", chat)
    with shown.view._client:
        side = Side(shown.view, ["m"], "Model", "m")
        asking = asyncio.create_task(side.ask("one", "", {}))
        await begun.wait()
        side.clear()
        go_on.set()
        await asking
        assert side._messages == []
        assert len(list(side._said)) == 1  # that nothing was said
        fails = False
        await side.ask("two", "", {})
    assert asked[1] == [{"role": "user", "content": "two"}]
    assert [one["role"] for one in side._messages] == ["user", "assistant"]


async def test_the_days_chosen_last_are_shown(shown: Shown) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    first_row, second_row = (
        UsageRow(
            day="2026-01-31", project=ProjectId("p"), key_id=None, model=model, kind="batch",
            requests=1, failed=0, input_tokens=1, cached_tokens=0, output_tokens=1,
            reasoning_tokens=0, cost=0.0,
        )
        for model in ("first", "second")
    )  # fmt: skip

    async def usage(*_: int) -> list[UsageRow]:
        if begun.is_set():
            return [second_row]
        begun.set()
        await go_on.wait()
        return [first_row]

    shown.reads.usage = usage
    with shown.view._client:
        page = UsagePage(shown.view)
        first = asyncio.create_task(page.load())
        await begun.wait()
        await page.load()
        go_on.set()
        await first
    assert page._models == ["second"]
