"""Accuracy against ground truth over model versions; the confusion matrix of one measurement."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from batch_admin import show
from batch_admin.shell import section
from batch_admin.view import View
from vllm_batch.events import LabelingAccuracyMeasured
from vllm_batch.labeling import control
from vllm_batch.labeling.control import MeasureAccuracy
from vllm_batch.messaging import subjects


class AccuracyPanel:
    """The chart, and the matrix of the measurement that is chosen, the newest at first."""

    def __init__(self, view: View, project: str) -> None:
        self._view = view
        self._project = project
        self._measured: dict[int, LabelingAccuracyMeasured] = {}
        with ui.element("div").classes("two"):
            with ui.element("div").classes("panel"):
                with ui.row().classes("w-full items-center justify-between"):
                    section("Accuracy against ground truth")
                    if view.may("operator"):
                        ui.button("Measure now", on_click=self._measure).props("flat dense no-caps")
                self._none = ui.label(
                    "Not measured yet. Mark annotations as ground truth, then measure."
                ).classes("dim")
                self._chart = show.chart(_history([]), "accuracy of each measured model version")
            with ui.element("div").classes("panel"):
                section("Confusion matrix")
                self._chosen = (
                    ui.select({}, label="Measurement", on_change=self._draw_matrix)
                    .props("dense outlined")
                    .classes("w-full")
                )
                self._matrix = show.chart({}, "confusion matrix: true and predicted labels")

    async def refresh(self) -> None:
        """Ask for the measurements again."""
        found = await self._read()
        rows = list(found.values())
        if found and len(found) == len(self._measured):
            return
        followed = self._chosen.value in {None, *list(self._measured)[-1:]}
        self._measured = found
        self._none.set_visibility(not rows)
        for element in (self._chart, self._chosen, self._matrix):
            element.set_visibility(bool(rows))
        if not rows:
            return
        self._chart.options.clear()
        self._chart.options.update(_history(rows))
        self._chart.update()
        names = {
            seq: f"{row.model_version}: {show.share(row.accuracy)} of {row.tasks}"
            for seq, row in reversed(found.items())
        }
        self._chosen.set_options(names, value=max(found) if followed else self._chosen.value)
        self._draw_matrix()

    @property
    def newest(self) -> LabelingAccuracyMeasured | None:
        """The last measurement."""
        return self._measured[max(self._measured)] if self._measured else None

    async def _read(self) -> dict[int, LabelingAccuracyMeasured]:
        """Return the project's measurements by sequence: the read model knows seconds, and two
        versions are often measured in the same one."""
        found = {}
        every = subjects.every(LabelingAccuracyMeasured)
        async for batch in self._view.services.store.read(every):
            for recorded in batch:
                event = recorded.event
                if isinstance(event, LabelingAccuracyMeasured) and event.project == self._project:
                    found[recorded.seq] = event
        return found

    def _draw_matrix(self) -> None:
        row = self._measured.get(self._chosen.value or 0)
        if row is None:
            return
        self._matrix.options.clear()
        self._matrix.options.update(_heatmap(row))
        self._matrix.update()

    async def _measure(self) -> None:
        services, user = self._view.services, self._view.user

        async def deed() -> str:
            command = MeasureAccuracy(project=self._project, requested_by=user.name)
            seconds = services.settings.label_measure_seconds
            said = await control.send(services.client, command, seconds)
            return f"{said['model_version']}: {show.share(said['accuracy'])}"

        await self._view.act("measure accuracy", self._project, deed)


def _history(rows: list[LabelingAccuracyMeasured]) -> dict[str, Any]:
    """Return accuracy, macro F1 and the interval of each measurement, in their order."""
    names = [row.model_version for row in rows]
    options = show.lines(("accuracy", []), ("macro F1", []))
    options["xAxis"] = {
        "type": "category", "data": names,
        "axisLabel": {"color": "#7d8a9a", "interval": 0, "width": 90, "overflow": "truncate"},
    }  # fmt: skip
    options["yAxis"]["max"] = 1
    line = {"type": "line", "symbolSize": 8}
    options["series"] = [
        {**line, "name": "accuracy", "data": [row.accuracy for row in rows]},
        {**line, "name": "macro F1", "data": [row.macro_f1 for row in rows]},
        {
            "name": "95 % interval", "type": "candlestick", "barMaxWidth": 10,
            "itemStyle": {"color": "rgba(47,127,214,.25)", "borderColor": "rgba(47,127,214,.5)"},
            "data": [[row.interval_low, row.interval_high] * 2 for row in rows],
        },
    ]  # fmt: skip
    return options


def _heatmap(row: LabelingAccuracyMeasured) -> dict[str, Any]:
    cells = [
        [column, line, count]
        for line, counts in enumerate(row.confusion)
        for column, count in enumerate(counts)
    ]
    axis = {"type": "category", "data": row.labels, "axisLabel": {"color": "#7d8a9a"}}
    named = {"nameLocation": "middle", "nameTextStyle": {"color": "#7d8a9a"}}
    return {
        "animation": False,
        "grid": {"left": 110, "right": 16, "top": 10, "bottom": 46},
        "tooltip": {},
        "xAxis": {**axis, **named, "name": "predicted", "nameGap": 28},
        "yAxis": {**axis, **named, "name": "true", "nameGap": 90, "inverse": True},
        "visualMap": {
            "show": False, "min": 0, "max": max((cell[2] for cell in cells), default=1),
            "inRange": {"color": ["#e8eef6", "#0b5cad"]},
        },
        "series": [{"type": "heatmap", "data": cells, "label": {"show": True}}],
    }  # fmt: skip
