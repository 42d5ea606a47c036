"""Worker logs: every worker's lines as in a terminal, followed."""

from __future__ import annotations

from urllib.parse import urlencode

from nicegui import ui

from batch_admin import worker_log_lines
from batch_admin.shell import Page, heading
from batch_admin.view import View
from batch_admin.widgets import LogView

_EVERYBODY = "all workers"


async def build(view: View) -> None:
    """Show the lines of one worker or of all."""
    chosen = view.query.get("worker", "")
    names = sorted(view.live.fleet.names)
    with ui.row().classes("w-full items-center justify-between"):
        heading("Worker logs")
        ui.select(
            [_EVERYBODY, *names],
            value=chosen if chosen in names else _EVERYBODY,
            label="Worker",
            on_change=lambda event: ui.navigate.to(_path(event.value)),
        ).props("dense outlined").classes("w-56")
    query = urlencode({"worker": chosen}) if chosen else ""
    LogView(
        f"{worker_log_lines.PATH}?{query}",
        lines_max=view.services.settings.admin_log_lines_max,
    )


def _path(name: str) -> str:
    return PAGE.path if name == _EVERYBODY else f"{PAGE.path}?{urlencode({'worker': name})}"


PAGE = Page(path="/admin/worker-logs", title="Worker logs", build=build, icon="terminal")
