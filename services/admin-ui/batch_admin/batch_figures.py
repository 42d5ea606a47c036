"""One batch in figures: progress, time, tokens, cost, facts, and the errors of its file by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nicegui import ui

from batch_admin import show
from batch_admin.shell import section
from batch_admin.widgets import Facts, Progress
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.events import Usage
from vllm_batch.ids import JobId
from vllm_batch.projections.rows import BatchRow
from vllm_batch.projections.waiting import WaitingRow, why

ERRORS_SHOWN = 50
ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.EXPIRED, JobStatus.CANCELLED})


class BatchFigures:
    """See the module."""

    def __init__(self) -> None:
        self._bar = Progress()
        with ui.element("div").classes("tiles"):
            self._done = show.Tile("Done")
            self._failed = show.Tile("Failed")
            self._time = show.Tile("Time left")
            self._input = show.Tile("Input tokens")
            self._output = show.Tile("Output tokens")
            self._cost = show.Tile("Cost")
        self._waiting = ui.label().classes("panel").style("color:var(--warn)")
        self._waiting.set_visibility(False)
        with ui.element("div").classes("panel"):
            self._facts = Facts([]).classes("line")
        self._errors = ui.element("div").classes("panel")
        self._errors.set_visibility(False)
        self._error_count = 0

    def say_waiting(self, found: Mapping[JobId, Sequence[WaitingRow]]) -> None:
        """Say what the batch waits for: models that no worker serves."""
        said = [
            f"{one.requests:,} requests wait. {why(one)}" for rows in found.values() for one in rows
        ]
        self._waiting.set_text(" ".join(said))
        self._waiting.set_visibility(bool(said))

    def set(self, row: BatchRow, cost: float, eta_seconds: float | None) -> None:
        """Show these now; nothing is sent where nothing has changed."""
        done, usage = row.completed + row.failed, row.usage or Usage(0, 0, 0, 0)
        self._bar.set(row.completed, row.failed, row.total)
        share = f"of {row.total:,}, {100 * done / row.total:.1f} %" if row.total else ""
        self._done.set(f"{done:,}", share or _without_total(row))
        self._failed.set(f"{row.failed:,}", "in the error file" if row.failed else "")
        self._time.set(*_time_left(row, eta_seconds))
        self._input.set(show.number(usage.input_tokens), f"{usage.cached_tokens:,} from cache")
        self._output.set(show.number(usage.output_tokens))
        self._cost.set(f"{cost:,.4f}", "at model prices")
        metadata = ", ".join(f"{key}: {value}" for key, value in (row.metadata or {}).items())
        self._facts.set(
            [
                ("Model", row.model or "-"), ("Endpoint", row.endpoint), ("Project", row.project),
                ("Window", row.completion_window), ("Metadata", metadata or "none"),
            ]
        )  # fmt: skip
        errors = (row.errors or [])[:ERRORS_SHOWN]
        if len(errors) == self._error_count:
            return
        self._error_count = len(errors)
        self._errors.clear()
        self._errors.set_visibility(bool(errors))
        with self._errors:
            section("Errors in the file")
            for error in errors:
                where = f"line {error.line}: " if error.line else ""
                ui.label(f"{where}{error.message} ({error.code})").style("color:var(--bad)")
            show.rest(len(errors), len(row.errors or []))


def _without_total(row: BatchRow) -> str:
    return "nothing was run" if row.status in ENDED else "being checked"


def _time_left(row: BatchRow, eta_seconds: float | None) -> tuple[str, str]:
    ended = row.completed_at or row.failed_at or row.expired_at or row.cancelled_at
    if ended is not None:
        return "none", f"took {show.duration(ended - row.created_at)}"
    if eta_seconds is None:
        return "-", "nothing is done yet"
    return show.duration(eta_seconds), "at the pace so far"
