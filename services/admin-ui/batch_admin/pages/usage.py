"""Usage and cost: by project, key, model and day; at other prices; as CSV."""

from __future__ import annotations

from collections import defaultdict
from datetime import date
from typing import Any

from nicegui import ui

from batch_admin import show
from batch_admin.data_table import DataTable, column
from batch_admin.price_list import Price
from batch_admin.shell import Page, heading, section
from batch_admin.view import View
from vllm_batch import usage_report
from vllm_batch.errors import InvalidInput
from vllm_batch.events import Recorded
from vllm_batch.projections.rows import UsageRow
from vllm_batch.usage_report import Group, UsageLine

GROUPS: tuple[Group, ...] = ("day", "project", "key", "model")
_REFRESH_SECONDS = 5.0
_COUNTS = ("requests", "failed", "input_tokens", "cached_tokens", "output_tokens")
_NOTHING = "Nothing was used in this period. Run a batch, or choose other days."
_PRICES = (("Input", "input"), ("Cached input", "cached"), ("Output", "output"))


class UsagePage:
    """The period, what to group by, and what was used."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._asked = 0
        self._rows: list[UsageRow] = []
        self._prices: defaultdict[str, Price] = defaultdict(Price)
        self._models: list[str] = []
        with ui.row().classes("w-full items-end gap-3"):
            today = view.services.clock.now().date()
            self._start = self._day("From", today.replace(day=1))
            self._end = self._day("To", today)
            self._groups = (
                ui.select(
                    [group for group in GROUPS if group != "batch"],
                    value=["day", "model"], label="By", multiple=True, on_change=self._show_lines,
                )
                .props("dense outlined use-chips")
                .classes("min-w-48")
            )  # fmt: skip
            ui.button("CSV", icon="download", on_click=self._download).props("flat no-caps")
        self._problem = ui.label().style("color:var(--bad)")
        self._tiles = ui.element("div").classes("tiles")
        with ui.element("div").classes("panel"):
            section("Tokens by day")
            self._chart = show.chart(_bars([]), "tokens by day and model")
        self._lines = ui.column().classes("w-full")
        self._columns: list[dict[str, Any]] = []
        with ui.element("div").classes("panel"):
            section("The same tokens at other prices")
            ui.label("Per million tokens, such as another provider's list.").classes("dim")
            self._offers = ui.column().classes("w-full gap-2")

    async def load(self, _: list[Recorded] | None = None) -> None:
        """Ask for the period again."""
        try:
            since, until = usage_report.period(
                self._start.value or "", self._end.value or "", self._view.services.clock.now()
            )
        except InvalidInput as error:
            self._problem.set_text(str(error))
            return
        self._problem.set_text("")
        self._asked += 1
        mine = self._asked
        rows = await self._view.services.reads.usage(since, until)
        if mine != self._asked or (rows == self._rows and self._models):
            return  # other days are wanted by now, or nothing has changed
        self._rows = rows
        self._chart.options.clear()
        self._chart.options.update(_bars(usage_report.add_up(rows, ["day", "model"])))
        self._chart.update()
        self._show_lines()
        self._show_offers()
        self._show_tiles()

    def _day(self, label: str, start: date) -> ui.input:
        return (
            ui.input(label, value=start.isoformat(), on_change=self._again)
            .props("type=date stack-label dense outlined")
            .classes("w-44")
        )

    async def _again(self) -> None:
        await self._view.patiently(self.load)

    def _chosen(self) -> list[Group]:
        return [group for group in GROUPS if group in (self._groups.value or [])]

    def _show_tiles(self) -> None:
        total = usage_report.add_up(self._rows, [])
        self._tiles.clear()
        with self._tiles:
            if not total:
                show.tile("Requests", "0", "nothing was used in this period")
                return
            used = total[0]
            show.tile("Requests", show.number(used.requests), f"{used.failed:,} failed")
            cached = f"{used.cached_tokens:,} from cache"
            show.tile("Input tokens", show.number(used.input_tokens), cached)
            show.tile("Output tokens", show.number(used.output_tokens))
            show.tile("Cost", f"{used.cost:,.4f}", "at the models' prices")
            show.tile("At other prices", f"{self._other_cost():,.4f}", "entered below")

    def _show_lines(self) -> None:
        groups = self._chosen()
        rows = [
            {group: getattr(line, group) or "-" for group in groups}
            | {name: f"{getattr(line, name):,}" for name in _COUNTS}
            | {"cost": f"{line.cost:,.4f}", "id": number}
            for number, line in enumerate(usage_report.add_up(self._rows, groups))
        ]
        columns = [
            column(name, name.replace("_", " ").capitalize(), right=name not in groups)
            for name in (*groups, *_COUNTS, "cost")
        ]
        if columns != self._columns:
            self._columns = columns
            self._lines.clear()
            with self._lines:
                self._table = DataTable(columns, label="Usage", empty=_NOTHING)
        self._table.show(rows)

    def _show_offers(self) -> None:
        """Show a row of prices per model; what was entered stays when only counts have changed."""
        models = [line.model or "-" for line in usage_report.add_up(self._rows, ["model"])]
        if models == self._models:
            return
        self._models = models
        self._offers.clear()
        with self._offers:
            for model in models:
                with ui.row().classes("w-full items-center gap-3"):
                    ui.label(model).classes("font-medium").style("min-width:14rem")
                    for label, name in _PRICES:
                        field = ui.number(label, min=0, step=0.01, on_change=self._show_tiles)
                        field.props("dense outlined").classes("w-36")
                        show.named(field, f"{label}: {model}").bind_value(self._prices[model], name)

    def _other_cost(self) -> float:
        by_model = usage_report.add_up(self._rows, ["model"])
        return sum(self._prices[line.model or "-"].cost(line) for line in by_model)

    def _download(self) -> None:
        groups = self._chosen()
        text = usage_report.as_csv(usage_report.add_up(self._rows, groups), groups)
        ui.download.content(text, "usage.csv", "text/csv")


async def build(view: View) -> None:
    """Show the month so far; it follows the work."""
    heading("Usage and cost")
    page = UsagePage(view)
    await page.load()
    view.refresh_on({"chunk", "job", "usage"}, page.load, seconds=_REFRESH_SECONDS, reads=True)


def _bars(lines: list[UsageLine]) -> dict[str, Any]:
    """Return a stacked ECharts bar chart of tokens per day, a colour per model."""
    days = sorted({line.day or "" for line in lines})
    models = sorted({line.model or "-" for line in lines})
    tokens = {
        (line.model or "-", line.day): line.input_tokens + line.output_tokens for line in lines
    }
    options = show.lines(*((model, []) for model in models))
    options["xAxis"] = {"type": "category", "data": days, "axisLabel": {"color": "#7d8a9a"}}
    options["series"] = [
        {
            "name": model, "type": "bar", "stack": "tokens", "barMaxWidth": 44,
            "data": [tokens.get((model, day), 0) for day in days],
        }
        for model in models
    ]  # fmt: skip
    return options


PAGE = Page(path="/usage", title="Usage and cost", build=build, icon="payments")
