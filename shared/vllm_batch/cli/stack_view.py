"""Shows the services of a stack as they change: a live table, or lines where there is no screen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_batch.cli import output
from vllm_batch.local.state import StackState

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "backoff": "yellow",
    "crash-looping": "bold red",
    "held": "magenta",
    "waiting": "dim",
    "stopping": "yellow",
    "stopped": "dim",
}


def table(state: StackState, progress: str = "") -> RenderableType:
    """Return the services as a table, with a line of what is being prepared under it."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("service", "state", "pid", "port", "metrics", "restarts", "since", ""):
        rows.add_column(heading, header_style="dim")
    for service in state.services:
        colour = _COLOURS.get(service.state, "white")
        since = time.strftime("%H:%M:%S", time.localtime(service.since)) if service.since else ""
        rows.add_row(
            service.name,
            f"[{colour}]{service.state}[/]",
            str(service.pid or ""),
            str(service.port or ""),
            str(service.metrics_port or ""),
            str(service.restarts or ""),
            since,
            escape(service.status),
        )
    return Group(rows, Text(progress, style="dim", overflow="ellipsis", no_wrap=True))


class StackView:
    """Follows one stack. ``progress`` and ``changed`` may be called from any thread."""

    def __init__(self) -> None:
        self._console = output.console(stderr=True)
        self._state = StackState()
        self._progress = ""
        self._lock = threading.Lock()
        self._live: object = None

    def progress(self, text: str) -> None:
        """Say what is being prepared."""
        with self._lock:
            if text == self._progress:
                return
            self._progress = text
            self._show(f"  {text}" if text else "")

    def changed(self, state: StackState) -> None:
        """Show the services' new states."""
        with self._lock:
            before = {service.name: service.state for service in self._state.services}
            self._state = state
            news = [
                f"  {s.name}: {s.state}" + (f" (pid {s.pid})" if s.pid else "")
                for s in state.services
                if before.get(s.name) != s.state and s.state != "waiting"
            ]
            self._show("\n".join(news))

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Keep the table on the screen, if there is one, until the end of the block."""
        from rich.live import Live

        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None
        self._console.print(table(self._state))

    def _show(self, news: str) -> None:
        from rich.live import Live

        if isinstance(self._live, Live):
            self._live.update(table(self._state, self._progress), refresh=True)
        elif news and not self._console.is_terminal:
            self._console.print(news, markup=False)
