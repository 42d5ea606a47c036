"""One batch: its way so far, its chunks, what failed and why, what came out, and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nicegui import ui

from batch_admin import batch_results, new_batch, show
from batch_admin.batch_figures import ENDED, BatchFigures
from batch_admin.batch_history import BatchHistory
from batch_admin.batch_results import Cause
from batch_admin.dialogs import confirmed
from batch_admin.live import RECENT_EVENTS
from batch_admin.shell import Page, heading, notice, section
from batch_admin.view import View
from batch_admin.widgets import ChunkGrid, LocalTime
from vllm_batch import ids
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates.job import Cancel, Job, JobStatus
from vllm_batch.errors import NotFound
from vllm_batch.event_store import append_decided
from vllm_batch.events import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkReleased,
    Event,
    JobFailed,
    JobStarted,
    JobStuck,
    Recorded,
)
from vllm_batch.events.chunk import ChunkEvent
from vllm_batch.ids import FileId, JobId, ProjectId
from vllm_batch.messaging import subjects
from vllm_batch.projections.rows import BatchRow

RESULTS_SHOWN = 20
_SLOW_SECONDS = 3.0


class BatchPage:
    """What the page shows of one batch, and how it follows."""

    def __init__(self, view: View, row: BatchRow, chunk_states: str) -> None:
        self._view = view
        self._job_id = job_id = row.job_id
        self._history = BatchHistory(view.services.store, job_id)
        self._reading = asyncio.Lock()
        self._why = batch_results.Causes(view.services)
        self._count = len(chunk_states)
        self.head = BatchHead(view, row)
        self._figures = BatchFigures()
        with ui.element("div").classes("two"):
            with ui.element("div").classes("panel"):
                section("What happened")
                self._timeline = ui.column().classes("w-full gap-1")
            with ui.element("div").classes("panel"):
                section("Throughput")
                self._chart = show.chart(show.lines(("requests/s", [])), "requests per second")
        with ui.element("div").classes("panel") as self._chunks:
            section("Chunks")
            self._grid = ChunkGrid(chunk_states)
        self._chunks.set_visibility(bool(chunk_states))
        with ui.element("div").classes("two"):
            with ui.element("div").classes("panel"):
                section("Errors by cause")
                self._errors = ui.column().classes("w-full gap-2")
            with ui.element("div").classes("panel"):
                section("Results")
                self._results = ui.column().classes("w-full gap-1")
        self._shown: tuple[object, object] = (None, None)

    async def refresh(self, events: list[Recorded]) -> None:
        """Show where the batch is now; ``events`` recolour their chunks."""
        mine = self._mine(events)
        if events and not mine and not _may_lack_some(events):
            return
        reads = self._view.services.reads
        row = await reads.any_batch(self._job_id)
        if row is None:
            return
        if (row.total and not self._count) or _may_lack_some(events):
            await self._draw_grid()  # it is planned now, or a chunk's event may be lacking
        else:
            self._recolour(mine)
        self.head.set(row)
        waits = row.status is JobStatus.RUNNING
        self._figures.say_waiting(await reads.waiting([self._job_id]) if waits else {})
        used = await reads.batch_usage([row.job_id])
        open_batch = self._view.live.batches.batches.get(row.job_id)
        eta = open_batch.eta_seconds(self._view.services.clock.now()) if open_batch else None
        self._figures.set(row, sum(one.cost or 0 for one in used), eta)
        whole = not events or _may_lack_some(events)
        if whole or any(not isinstance(r.event, ChunkEvent) for r in mine):
            await self._show_timeline()

    async def refresh_slowly(self, events: list[Recorded]) -> None:
        """Show what takes reading: the chart, the errors and the results."""
        if events and not self._mine(events) and not _may_lack_some(events):
            return
        async with self._reading:  # the first look and what came meanwhile
            await self._read()

    async def _read(self) -> None:
        services = self._view.services
        row = await services.reads.any_batch(self._job_id)
        if row is None:
            return
        await self._history.catch_up()
        series = show.lines(("requests/s", self._history.throughput()))["series"]
        if series != self._chart.options["series"]:
            self._chart.options["series"] = series
            self._chart.update()
        if row.error_file_id is not None:
            causes = await self._why.of_file(row.error_file_id)
        else:
            causes = await self._why.of_segments(self._history.take_failed())
        if row.output_file_id is not None:
            results = await batch_results.first(services, row.output_file_id, RESULTS_SHOWN)
        else:
            results = await batch_results.newest(services, self._history.newest, RESULTS_SHOWN)
        self._show_outcome(row, causes, results)

    def _mine(self, events: list[Recorded]) -> list[Recorded]:
        """Return what is about the batch, or about no batch: workers and models it may need."""
        return [r for r in events if getattr(r.event, "job_id", self._job_id) == self._job_id]

    def _show_outcome(
        self, row: BatchRow, causes: list[Cause], results: list[batch_results.Result]
    ) -> None:
        """Draw errors and results, each only if it has changed: somebody may be reading."""
        counts = [(cause.code, cause.count) for cause in causes] + [("of all", row.failed)]
        if self._shown[0] != (row.status, counts):
            opened = {e.text for e in self._errors if isinstance(e, ui.expansion) and e.value}
            self._errors.clear()
            with self._errors:
                _show_causes(row, causes, {text.partition(": ")[0] for text in opened})
        if self._shown[1] != (row.status, results):
            self._results.clear()
            with self._results:
                _show_results(row, results)
        self._shown = ((row.status, counts), (row.status, results))

    async def _draw_grid(self) -> None:
        states = await self._view.services.reads.chunk_states(self._job_id)
        self._count = len(states)
        self._chunks.set_visibility(bool(states))
        self._grid.reset(states)

    def _recolour(self, events: list[Recorded]) -> None:
        changes: dict[int, str] = {}
        for recorded in events:
            match recorded.event:
                case ChunkLeased(chunk=chunk):
                    changes[chunk] = "l"
                case ChunkCompleted(chunk=chunk, failed=failed):
                    changes[chunk] = "f" if failed else "c"
                case ChunkReleased(chunk=chunk):
                    changes[chunk] = "r"
                case ChunkClosed(chunk=chunk):
                    changes[chunk] = "x"
        if changes:
            self._grid.change([(n, s) for n, s in changes.items() if n < self._count])

    async def _show_timeline(self) -> None:
        events = await _own_events(self._view, self._job_id)
        self._timeline.clear()
        with self._timeline:
            for recorded in events:
                with ui.row().classes("w-full gap-3 no-wrap items-baseline"):
                    LocalTime(recorded.time).classes("dim").style("white-space:nowrap")
                    ui.label(_said(recorded)).style("overflow-wrap:anywhere")


def _may_lack_some(events: list[Recorded]) -> bool:
    """Tell whether more came, of any batch, than a watch keeps."""
    return len(events) >= RECENT_EVENTS


async def build(view: View) -> None:
    """Show the batch; it follows its events."""
    name = view.params["job_id"]
    reads = view.services.reads
    row = await reads.any_batch(JobId(name)) if ids.is_token(name) else None
    if row is None:
        heading("Batch")
        notice("search_off", "No such batch", "It may not be in the read models yet: reload.")
        return
    page = BatchPage(view, row, await reads.chunk_states(row.job_id))
    page.head.say_whose_are_cloned(await new_batch.own_project(view.services))
    await page.refresh([])
    nouns = {"job", "chunk"}
    view.refresh_on(nouns | {"worker", "model"}, page.refresh, reads=True)
    view.refresh_on(nouns, page.refresh_slowly, seconds=_SLOW_SECONDS, reads=True)
    view.keep(_first(view, page))


async def _first(view: View, page: BatchPage) -> None:
    """Fill in what takes reading, once the page is there."""
    await ui.context.client.connected()
    await view.patiently(lambda: page.refresh_slowly([]))


class BatchHead:
    """The batch's id, its state, and what may be done with it now: buttons are shown and hidden,
    never drawn anew."""

    def __init__(self, view: View, row: BatchRow) -> None:
        self._row = row
        self._files: list[tuple[ui.button, Callable[[BatchRow], FileId | None]]] = []
        with ui.row().classes("w-full items-center justify-between gap-2"):
            with ui.row().classes("items-center gap-3"):
                ui.label(row.job_id).classes("page-title mono").props("role=heading aria-level=1")
                self._state = show.State(row.status.value)
            with ui.row().classes("gap-1"):
                self._download("Input", lambda row: row.input_file_id)
                self._download("Output", lambda row: row.output_file_id)
                self._download("Errors", lambda row: row.error_file_id)
                events = f"/events?batch={row.job_id}"
                _button("Events", "history", lambda: ui.navigate.to(events))
                self._clone: ui.button | None = None
                self._cancel: ui.button | None = None
                if view.may("operator"):
                    self._clone = _button("Clone", "content_copy", lambda: _clone(view, row.job_id))
                    self._cancel = _button("Cancel", "cancel", lambda: _cancel(view, row.job_id))
                    self._cancel.props("color=negative")
        self.set(row)

    def set(self, row: BatchRow) -> None:
        """Show the batch as it is now."""
        self._row = row
        self._state.set(row.status.value)
        for button, file_of in self._files:
            button.set_visibility(file_of(row) is not None)
        if self._cancel is not None:
            self._cancel.set_visibility(row.status in {JobStatus.VALIDATING, JobStatus.RUNNING})

    def say_whose_are_cloned(self, project: ProjectId | None) -> None:
        """Have Clone work for batches of ``project`` only, where it is known."""
        if self._clone is not None and project not in {None, self._row.project}:
            self._clone.disable()
            self._clone.tooltip(
                f"This service's key is of the project {project}: with a key of "
                f"{self._row.project}, `vllm-batch batch submit` does it."
            )

    def _download(self, label: str, file_of: Callable[[BatchRow], FileId | None]) -> None:
        def download() -> None:
            ui.navigate.to(f"/files/{file_of(self._row)}/content")

        self._files.append((_button(label, "download", download), file_of))


def _button(label: str, icon: str, on_click: Callable[[], object]) -> ui.button:
    return ui.button(label, icon=icon, on_click=on_click).props("flat dense no-caps")


async def _cancel(view: View, job_id: JobId) -> None:
    async def deed() -> str:
        def decide(state: Job | None) -> Event:
            if state is None:
                raise NotFound(f"there is no batch {job_id}")
            return job_rules.decide(state, Cancel())

        await append_decided(view.services.store, subjects.job(job_id), job_rules.evolve, decide)
        return f"{job_id} is being cancelled"

    effect = "What is done is kept and handed out; the rest is not run."
    if await confirmed(f"Cancel {job_id}?", effect, do="Cancel the batch"):
        await view.act("cancel a batch", job_id, deed)


async def _clone(view: View, job_id: JobId) -> None:
    async def deed() -> str:
        new = await new_batch.clone(view.services, job_id)
        ui.navigate.to(f"/batches/{new}")
        return f"{new} was created"

    await view.act("clone a batch", job_id, deed)


async def _own_events(view: View, job_id: JobId) -> list[Recorded]:
    found: list[Recorded] = []
    async for batch in view.services.store.read(subjects.job(job_id)):
        found += batch
    return found


def _said(recorded: Recorded) -> str:
    match recorded.event:
        case JobStarted(total=total, chunks=chunks, model=model):
            return f"started: {total:,} requests in {chunks:,} chunks for {model}"
        case JobFailed(error_count=count):
            return f"failed: {count:,} errors in the file"
        case JobStuck(detail=detail):
            return f"stuck: {detail}"
        case event:
            return event.TYPE.partition(".")[2].replace("_", " ")


def _show_causes(row: BatchRow, causes: list[Cause], opened: set[str]) -> None:
    if not causes:
        ui.label("Nothing failed." if row.total else "Nothing has run.").classes("dim")
    looked_at = sum(cause.count for cause in causes)
    if causes and looked_at < row.failed:
        ui.label(f"Of {looked_at:,} of the {row.failed:,} requests that failed.").classes("dim")
    for cause in causes:
        title = f"{cause.code}: {cause.count:,}"
        with ui.expansion(title, value=cause.code in opened).classes("w-full"):
            for custom_id, message in cause.examples:
                ui.label(f"{custom_id}: {message}").classes("mono").style("overflow-wrap:anywhere")


def _show_results(row: BatchRow, results: list[batch_results.Result]) -> None:
    if row.output_file_id is not None:
        ui.label("The first ones of the output file").classes("dim")
    elif results:
        ui.label("The newest ones").classes("dim")
    else:
        ui.label("None." if row.status in ENDED else "None yet.").classes("dim")
    for result in results:
        with ui.element("div").classes("result"):
            ui.label(result.custom_id).classes("mono")
            ui.label(str(result.status)).classes("dim")
            ui.label(result.text).classes("ellipsis").tooltip(result.text)


PAGE = Page(path="/batches/{job_id}", title="Batch", build=build)
