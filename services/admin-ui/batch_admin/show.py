"""How values are shown, the same on every page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from nicegui import ui
from nicegui.element import Element

from batch_admin.widgets import LocalTime, Progress

STATE_COLOURS = {
    "completed": "good", "ready": "good", "leased": "run", "running": "run", "validating": "run",
    "finalizing": "run", "starting": "run", "draining": "warn", "cancelling": "warn",
    "expiring": "warn", "cancelled": "idle", "stopped": "idle", "expired": "warn", "failed": "bad",
    "lost": "bad", "crash-looping": "bad", "silent": "bad", "loading": "run", "waiting": "warn",
    "idle": "idle", "promoted": "good", "evaluated": "run", "rejected": "warn", "prepared": "run",
    "requested": "run", "rolled_back": "warn", "active": "good", "disabled": "bad",
    "delivered": "good", "pending": "run", "given_up": "bad", "revoked": "idle", "closed": "idle",
}  # fmt: skip
Points = Sequence[tuple[float, float]]
Series = tuple[str, Points]
AnyElement = TypeVar("AnyElement", bound=Element)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def named(element: AnyElement, name: str) -> AnyElement:
    """Say what an element is to those who do not see it. ``name`` may be any text: a string given
    to ``props(...)`` is parsed, and what it then has of a ``:`` is run by the browser."""
    element.props["aria-label"] = name
    return element


def number(value: float) -> str:
    """Return a number with thousands apart; small fractions keep a digit."""
    return (
        f"{value:,.1f}" if value and abs(value) < 100 and value != int(value) else f"{value:,.0f}"
    )


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def share(part: float | None) -> str:
    """Return a part of one as percent."""
    return "-" if part is None else f"{100 * part:.1f} %"


def size(count: float) -> str:
    """Return bytes in the unit that fits."""
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def moment(seconds: int | None) -> None:
    """Show Unix seconds in the viewer's zone."""
    if seconds is None:
        ui.label("-")
    else:
        LocalTime(datetime.fromtimestamp(seconds, UTC))


def rest(shown: int, total: int) -> None:
    """Say how many of a list are not shown, where it does not end here."""
    if total > shown:
        ui.label(f"and {total - shown:,} more").classes("dim")


class State:
    """A state with its colour, and never by colour alone."""

    def __init__(self, name: str) -> None:
        self._label = ui.label()
        self._name = ""
        self.set(name)

    def set(self, name: str) -> None:
        """Show this state now; nothing is sent where it is the same."""
        if name == self._name:
            return
        self._name = name
        self._label.set_text(name.replace("_", " "))
        self._label.classes(replace=f"state {STATE_COLOURS.get(name, 'idle')}")


def state(name: str) -> None:
    """Show a state that stays as it is."""
    State(name)


class Tile:
    """One figure with its name, and a note on it."""

    def __init__(self, name: str, value: str = "", note: str = "") -> None:
        with ui.element("div").classes("tile"):
            ui.label(name).classes("name")
            self._value = ui.label(value).classes("value")
            self._note = ui.label(note).classes("note")

    def set(self, value: str, note: str = "") -> None:
        """Show this now; nothing is sent where nothing has changed."""
        self._value.set_text(value)
        self._note.set_text(note)


def tile(name: str, value: str, note: str = "") -> None:
    """Show one figure that stays as it is."""
    Tile(name, value, note)


def bar(completed: int, failed: int, total: int) -> None:
    """Show progress: what succeeded and what failed of a total."""
    Progress(completed, failed, total)


def lines(*series: Series) -> dict[str, Any]:
    """Return an ECharts line chart over time; times in Unix seconds."""
    return {
        "animation": False,
        "backgroundColor": "transparent",
        "color": ["#2f7fd6", "#2c9151", "#d98b1f"],
        "grid": {"left": 52, "right": 16, "top": 30, "bottom": 26},
        "tooltip": {"trigger": "axis"},
        "legend": {"top": 0, "textStyle": {"color": "#7d8a9a"}, "icon": "roundRect"},
        "xAxis": {"type": "time", "axisLabel": {"color": "#7d8a9a", "hideOverlap": True}},
        "yAxis": {
            "type": "value", "min": 0, "axisLabel": {"color": "#7d8a9a"},
            "splitLine": {"lineStyle": {"color": "rgba(128,140,155,0.25)"}},
        },
        "series": [
            {
                "name": name, "type": "line", "showSymbol": False, "lineStyle": {"width": 1.6},
                "areaStyle": {"opacity": 0.08},
                "data": [[time * 1000, value] for time, value in points],
            }
            for name, points in series
        ],
    }  # fmt: skip


def two_scales(left: Series, right: Series) -> dict[str, Any]:
    """Return a line chart of two series whose values have nothing to do with each other: each has
    an axis of its own, named after it."""
    options = lines(left, right)
    options["legend"] = {"show": False}
    axis, colours = options["yAxis"], options["color"]
    options["yAxis"] = [
        {**axis, "name": name, "nameTextStyle": {"color": colour, "align": side, "fontSize": 13}}
        for (name, _), colour, side in zip((left, right), colours, ("left", "right"), strict=False)
    ]
    options["yAxis"][1]["splitLine"] = {"show": False}
    options["grid"] = {**options["grid"], "right": 56}
    options["series"][1]["yAxisIndex"] = 1
    return options


def chart(options: dict[str, Any], label: str, *, height_px: int = 210) -> ui.echart:
    """Show a chart; ``label`` says what it is to those who do not see it."""
    drawn = ui.echart(options).classes("w-full").style(f"height:{height_px}px").props("role=img")
    return named(drawn, label)
