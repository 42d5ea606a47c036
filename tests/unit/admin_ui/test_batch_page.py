"""One batch's page stays live however much happens to other batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from unittest.mock import AsyncMock

import msgspec
import pytest
from nicegui import ui
from nicegui.element import Element
from tests.facts import append, leased, planned, run_a_batch, submitted
from tests.unit.admin_ui.conftest import Shown

from batch_admin.batch_figures import ERRORS_SHOWN
from batch_admin.batch_results import Cause
from batch_admin.live import RECENT_EVENTS
from batch_admin.pages.batch import BatchPage
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import LineError, Recorded, WorkerStarted
from vllm_batch.ids import FileId, JobId, ProjectId, WorkerId
from vllm_batch.projections.rows import BatchRow
from vllm_batch.projections.waiting import WaitingRow

JOB = JobId("batch_1")


def _row(status: JobStatus, completed: int) -> BatchRow:
    return BatchRow(
        seq=1, job_id=JOB, project=ProjectId("default"), status=status, total=20,
        completed=completed, endpoint="/v1/chat/completions", input_file_id=FileId("file-in"),
        completion_window="24h", created_at=1, expires_at=86_401, model="m",
    )  # fmt: skip


async def _page(shown: Shown) -> BatchPage:
    await run_a_batch(shown.store, JOB)
    shown.reads.any_batch = AsyncMock(return_value=_row(JobStatus.RUNNING, 8))
    shown.reads.chunk_states = AsyncMock(return_value="cr")
    shown.reads.waiting = AsyncMock(return_value={})
    shown.reads.batch_usage = AsyncMock(return_value=[])
    with shown.view._client:
        return BatchPage(shown.view, _row(JobStatus.RUNNING, 8), "lr")


def _state(page: BatchPage) -> str:
    return page.head._state._label.text


async def _of_others(shown: Shown, count: int) -> list[Recorded]:
    found = await append(shown.store, submitted("batch_2"), planned("batch_2", 0))
    found += await append(shown.store, leased("batch_2", 0))
    return (found * count)[:count]


@pytest.mark.parametrize("slowly", [False, True])
async def test_a_page_looks_at_its_batch_when_more_came_than_a_watch_keeps(
    shown: Shown, slowly: bool
) -> None:
    page = await _page(shown)
    refresh = page.refresh_slowly if slowly else page.refresh
    await refresh(await _of_others(shown, RECENT_EVENTS - 1))
    shown.reads.any_batch.assert_not_awaited()
    shown.reads.any_batch.return_value = _row(JobStatus.COMPLETED, 20)
    await refresh(await _of_others(shown, RECENT_EVENTS))
    if slowly:
        assert page._chart.options["series"][0]["data"]
    else:
        assert _state(page) == "completed"
        assert len(list(page._timeline)) == 2


async def test_two_looks_at_once_count_what_was_done_once(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = shown.store.read

    async def read_slowly(subject: str, *, after: int = 0) -> AsyncIterator[list[Recorded]]:
        async for batch in read(subject, after=after):
            await asyncio.sleep(0)
            yield batch

    page = await _page(shown)
    monkeypatch.setattr(shown.store, "read", read_slowly)
    await asyncio.gather(page.refresh_slowly([]), page.refresh_slowly([]))
    (point,) = page._chart.options["series"][0]["data"]
    assert point[1] == 8


def _texts(box: Element) -> list[str]:
    return [one.text for one in box.descendants() if isinstance(one, ui.label)]


async def test_what_is_not_all_says_so(shown: Shown) -> None:
    page = await _page(shown)
    row = msgspec.structs.replace(
        _row(JobStatus.FAILED, 0),
        failed=30_000,
        errors=[LineError("invalid", "no JSON", line=n) for n in range(ERRORS_SHOWN + 7)],
    )
    with shown.view._client:
        page._figures.set(row, 0.0, None)
        page._show_outcome(row, [Cause("timeout", 20_000)], [])
    assert _texts(page._figures._errors)[-1] == "and 7 more"
    assert _texts(page._errors)[0] == "Of 20,000 of the 30,000 requests that failed."
    page._show_outcome(row, [Cause("timeout", 30_000)], [])
    assert _texts(page._errors) == []


async def test_a_batch_says_which_model_it_waits_for(shown: Shown) -> None:
    page = await _page(shown)
    waiting = WaitingRow(job_id=JOB, model="acme/large", requests=12, registered=False)
    shown.reads.waiting.return_value = {JOB: [waiting]}
    started = WorkerStarted(
        worker_id=WorkerId("w"), name="w", host="h", pid=1, engine="e", version="1"
    )
    await page.refresh(await append(shown.store, started))
    said = page._figures._waiting
    assert said.visible
    assert said.text.startswith("12 requests wait. No worker serves 'acme/large' now.")
    shown.reads.any_batch.return_value = _row(JobStatus.COMPLETED, 20)
    await page.refresh([])
    assert not said.visible


async def test_what_the_read_models_did_not_have_is_looked_at_again(
    shown: Shown,
) -> None:
    shown.reads.wait_for.side_effect = [False, True, True, True]
    given: list[list[int]] = []

    async def refresh(events: list[Recorded]) -> None:
        given.append([one.seq for one in events])

    shown.view.refresh_on({"job", "chunk"}, refresh, seconds=0, reads=True)
    await asyncio.sleep(0.01)
    ours = (await append(shown.store, submitted(JOB)))[0]
    shown.live._apply(ours)
    async with asyncio.timeout(10):
        while len(given) < 1:
            await asyncio.sleep(0)
        others = (await append(shown.store, submitted("batch_2")))[0]
        shown.live._apply(others)
        while len(given) < 2:
            await asyncio.sleep(0.01)
    assert given == [[ours.seq], [ours.seq, others.seq]]
