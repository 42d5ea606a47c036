"""Events: what is recorded as it is recorded; one event in full; a batch as of any event."""

from __future__ import annotations

from typing import Any

from nicegui import events, ui

from batch_admin import time_travel
from batch_admin.data_table import DataTable, column
from batch_admin.live import RECENT_EVENTS
from batch_admin.shell import Page, heading, section
from batch_admin.time_travel import as_json
from batch_admin.view import View
from vllm_batch import ids
from vllm_batch.events import EVENT_TYPES, Recorded
from vllm_batch.ids import JobId

ROWS_MAX = 300
_ANY = "any"
_NOUNS = sorted({name.partition(".")[0] for name in EVENT_TYPES})
_COLUMNS = (
    column("id", "Seq", "open", says="Show event"),
    column("time", "Time", "time"),
    column("type", "Type"),
    column("about", "About"),
    column("source", "Source"),
)


class Tail:
    """The newest events that the filter lets through, the last one first."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._by_seq: dict[int, Recorded] = {}
        with ui.row().classes("w-full items-end gap-3"):
            self._noun = ui.select(
                [_ANY, *_NOUNS], value=_ANY, label="About", on_change=self.fill
            ).props("dense outlined").classes("w-40")  # fmt: skip
            self._text = (
                ui.input("Search type, id or content", on_change=self.fill)
                .props("dense outlined clearable debounce=300")
                .classes("w-72")
            )
            self._paused = ui.switch("Pause")
        ui.label(
            f"The newest {ROWS_MAX:,} that are like this, of the last {RECENT_EVENTS:,} events."
        ).classes("dim")
        self._table = DataTable(
            _COLUMNS, label="Events", empty="Nothing like this is among the newest events."
        )
        self._table.on("open", self._open)
        self._detail = ui.element("div").classes("panel")
        self._detail.set_visibility(False)
        self.fill()

    def fill(self) -> None:
        """Show the newest of what the process remembers."""
        chosen = [one for one in self._view.live.recent if self._wanted(one)][-ROWS_MAX:]
        self._by_seq = {one.seq: one for one in chosen}
        self._table.show([_row(one) for one in reversed(chosen)])

    async def add(self, _: list[Recorded]) -> None:
        """Show what came, unless the user is reading."""
        if not self._paused.value:
            self.fill()

    def _wanted(self, recorded: Recorded) -> bool:
        if self._noun.value != _ANY and not recorded.event.TYPE.startswith(f"{self._noun.value}."):
            return False
        text = (self._text.value or "").lower()
        return not text or text in recorded.event.TYPE or text in as_json(recorded).lower()

    def _open(self, event: events.GenericEventArguments) -> None:
        recorded = self._by_seq.get(int(event.args))
        if recorded is None:
            return
        self._detail.set_visibility(True)
        self._detail.clear()
        with self._detail:
            section(f"{recorded.event.TYPE} · event {recorded.seq}")
            ui.label(as_json(recorded)).classes("json")
            if job_id := getattr(recorded.event, "job_id", None):
                ui.link("Everything of this batch, in order", f"{PAGE.path}?batch={job_id}")


async def build(view: View) -> None:
    """Show the tail, or one batch's events in order."""
    heading("Events")
    with ui.row().classes("w-full items-center gap-3"):
        batch = ui.input("Batch to look back at", value=view.query.get("batch", "")).props(
            "dense outlined"
        )
        batch.classes("w-80")
        ui.button(
            "Time travel", on_click=lambda: ui.navigate.to(f"{PAGE.path}?batch={batch.value}")
        ).props("flat no-caps")
    name = view.query.get("batch", "")
    if name and ids.is_token(name):
        await time_travel.build(view, JobId(name))
        return
    tail = Tail(view)
    view.refresh_on(_NOUNS, tail.add)


def _row(recorded: Recorded) -> dict[str, Any]:
    return {
        "id": recorded.seq, "time": recorded.time.isoformat(), "type": recorded.event.TYPE,
        "about": " / ".join(recorded.event.aggregate_id()), "source": recorded.source,
    }  # fmt: skip


PAGE = Page(path="/events", title="Events", build=build, icon="bolt")
