"""Elements of our own, for what NiceGUI's cannot do fast or at all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from nicegui.element import Element


class LocalTime(Element, component="local_time.js"):
    """A moment in the viewer's zone; the exact value shows on hover."""

    def __init__(self, moment: datetime) -> None:
        super().__init__()
        self._props["iso"] = moment.isoformat()


class LeaveWhenSignedOut(Element, component="leave_when_signed_out.js"):
    """Has a page that may not connect any more go to the sign-in; it would try for ever."""


class ChunkGrid(Element, component="chunk_grid.js"):
    """Chunks as coloured squares on a canvas: 10,000 are drawn in one go.

    States are one letter each: r(eady), l(eased), c(ompleted), f (completed, with failures),
    x (closed).
    """

    def __init__(self, states: str) -> None:
        super().__init__()
        self._props["states"] = states

    def change(self, changes: Sequence[tuple[int, str]]) -> None:
        """Recolour single chunks."""
        self.run_method("change", list(changes))

    def reset(self, states: str) -> None:
        """Colour all chunks anew."""
        self.run_method("reset", states)


class Facts(Element, component="facts.js"):
    """Names and their values, as text."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._props["rows"] = list(rows)

    def set(self, rows: Sequence[tuple[str, str]]) -> None:
        """Show these now; nothing is sent where nothing has changed."""
        if self._props["rows"] != list(rows):
            self._props["rows"] = list(rows)
            self.update()


class Progress(Element, component="progress.js"):
    """What succeeded and what failed of a total, as a bar."""

    def __init__(self, completed: int = 0, failed: int = 0, total: int = 0) -> None:
        super().__init__()
        self._props |= {"completed": completed, "failed": failed, "total": total}

    def set(self, completed: int, failed: int, total: int) -> None:
        """Show these now; nothing is sent where nothing has changed."""
        wanted = {"completed": completed, "failed": failed, "total": total}
        if any(self._props[name] != value for name, value in wanted.items()):
            self._props.update(wanted)
            self.update()


PulsePoint = tuple[float, float, float | None, float | None]


class PulseChart(Element, component="pulse_chart.js"):
    """Output tokens/s of a worker and, where it has GPUs, their memory and use in percent."""

    def __init__(self, label: str, points: Sequence[PulsePoint], *, gpus: bool) -> None:
        super().__init__()
        series = [{"name": "tokens/s", "lane": 0, "unit": "", "color": "#2f7fd6"}]
        if gpus:
            series += [
                {"name": "GPU memory", "lane": 1, "unit": " %", "color": "#2c9151", "max": 100},
                {"name": "GPU busy", "lane": 1, "unit": " %", "color": "#d98b1f", "max": 100},
            ]
        self._props |= {"label": label, "series": series, "points": _in_percent(points)}

    def push(self, points: Sequence[PulsePoint]) -> None:
        """Draw these, too."""
        self.run_method("push", _in_percent(points))


def _in_percent(points: Sequence[PulsePoint]) -> list[list[float | None]]:
    return [
        [time, tokens, *(None if part is None else 100 * part for part in (memory, busy))]
        for time, tokens, memory, busy in points
    ]


class LogView(Element, component="log_view.js"):
    """A terminal of log lines: keeps 100,000, draws those in sight, shows everything as text."""

    def __init__(self, url: str, *, lines_max: int) -> None:
        super().__init__()
        self._props["url"] = url
        self._props["lines_max"] = lines_max
