"""Batches: found, sorted and paged by the server; and a new one from a file."""

from __future__ import annotations

from typing import Any

from nicegui import events, ui

from batch_admin import new_batch, show
from batch_admin.data_table import ROWS_MAX, DataTable, column
from batch_admin.raw_upload import RawFile, raw_upload
from batch_admin.shell import Page, heading
from batch_admin.show import STATE_COLOURS
from batch_admin.view import View
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import Recorded
from vllm_batch.projections.admin_reads import SORTS, BatchFilter
from vllm_batch.projections.rows import BatchRow

ANY = "any"
_REFRESH_SECONDS = 2.0
_COLUMNS = (
    column("id", "Batch", "link", href="/batches/"),
    column("status", "Status", "state", sortable=True),
    column("progress", "Progress", "progress"),
    column("total", "Requests", right=True, sortable=True),
    column("failed", "Failed", right=True, sortable=True),
    column("project", "Project"),
    column("model", "Model"),
    column("created_at", "Created", "time", sortable=True),
)


class BatchTable:
    """The table, its filters, and the page of batches it shows."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._asked = 0
        self._page: dict[str, Any] = {
            "page": 1, "size": 25, "sort": "created_at", "descending": True,
        }  # fmt: skip
        with ui.row().classes("w-full items-end gap-3"):
            self.text = (
                ui.input("Search", on_change=self._again)
                .props("dense outlined clearable debounce=300")
                .classes("w-64")
            )
            start = view.query.get("status", ANY)
            self.status = self._select("Status", [ANY, *(one.value for one in JobStatus)], start)
            self.project = self._select("Project", [ANY], ANY)
            self.model = self._select("Model", [ANY], ANY)
        self.table = DataTable(
            _COLUMNS,
            label="Batches",
            empty='No batch is like this. Upload a file with "New batch", or loosen the filter.',
        )
        self.table.on("ask", self._turn)

    async def load(self, _: list[Recorded] | None = None) -> None:
        """Ask for the page again."""
        page = dict(self._page)
        self._asked += 1
        mine = self._asked
        rows, found = await self._view.services.reads.find_batches(
            BatchFilter(
                status=_chosen(self.status.value),
                project=_chosen(self.project.value),
                model=_chosen(self.model.value),
                text=self.text.value or "",
                sort=page["sort"],
                descending=page["descending"],
            ),
            limit=page["size"],
            offset=(page["page"] - 1) * page["size"],
        )
        if mine != self._asked:
            return  # something else is wanted by now
        self.table.show(
            [_row(row) for row in rows], total=found, page=page["page"], page_size=page["size"],
            sort=page["sort"], descending=page["descending"],
        )  # fmt: skip

    async def load_choices(self) -> None:
        """Fill the filters with what there is."""
        projects, models = await self._view.services.reads.choices()
        self.project.set_options([ANY, *projects])
        self.model.set_options([ANY, *models])

    def _select(self, label: str, options: list[str], value: str) -> ui.select:
        start = value if value in options else ANY
        select = ui.select(options, value=start, label=label, on_change=self._again)
        return select.props("dense outlined").classes("w-40")

    async def _again(self) -> None:
        self._page["page"] = 1
        await self._view.patiently(self.load)

    async def _turn(self, event: events.GenericEventArguments) -> None:
        wanted = event.args
        self._page = {
            "page": max(1, int(wanted["page"])),
            "size": min(ROWS_MAX, max(1, int(wanted["size"]))),
            "sort": wanted["sort"] if wanted["sort"] in SORTS else "created_at",
            "descending": bool(wanted["descending"]),
        }
        await self._view.patiently(self.load)


async def build(view: View) -> None:
    """Show the table; it follows the events of batches."""
    with ui.row().classes("w-full items-center justify-between"):
        heading("Batches")
        if view.may("operator"):
            ui.button("New batch", icon="add", on_click=lambda: _new(view)).props(
                "unelevated no-caps"
            )
    table = BatchTable(view)
    await table.load_choices()
    await table.load()
    view.refresh_on({"job", "chunk"}, table.load, seconds=_REFRESH_SECONDS, reads=True)


async def _new(view: View) -> None:
    """Ask for a file and make a batch of it."""
    with (
        show.named(ui.dialog().props("persistent"), "New batch") as dialog,
        ui.card().classes("dialog"),
    ):
        ui.label("New batch").classes("section-title").props("role=heading aria-level=2")
        ui.label("A JSONL file, one request a line, as for OpenAI's Batch API.").classes("dim")
        endpoint = ui.select(
            list(new_batch.ENDPOINTS), value=new_batch.ENDPOINTS[0], label="Endpoint"
        ).classes("w-full")
        window = ui.select(
            list(new_batch.WINDOWS), value=new_batch.WINDOWS[0], label="To be done within"
        ).classes("w-full")

        async def take(file: RawFile) -> None:
            async def deed() -> str:
                file_id = await new_batch.upload(view.services, file)
                job_id = await new_batch.create(
                    view.services, file_id=file_id, endpoint=endpoint.value, window=window.value
                )
                ui.navigate.to(f"/batches/{job_id}")
                return f"{job_id} was created"

            if await view.act("create a batch", file.name, deed):
                dialog.close()

        raw_upload(take, bytes_max=view.services.settings.batch_file_bytes_max)
        ui.button("Close", on_click=dialog.close).props("flat no-caps").classes("self-end")
    dialog.open()


def _chosen(value: str) -> str:
    return "" if value == ANY else value


def _row(batch: BatchRow) -> dict[str, Any]:
    total = batch.total or 1
    return {
        "id": batch.job_id, "created_at": batch.created_at, "project": batch.project,
        "model": batch.model or "-", "status": batch.status.value,
        "colour": STATE_COLOURS.get(batch.status.value, "idle"),
        "ok": 100 * batch.completed / total, "no": 100 * batch.failed / total,
        "done": f"{batch.completed + batch.failed:,} of {batch.total:,}",
        "total": f"{batch.total:,}", "failed": f"{batch.failed:,}",
    }  # fmt: skip


PAGE = Page(path="/batches", title="Batches", build=build, icon="list_alt")
