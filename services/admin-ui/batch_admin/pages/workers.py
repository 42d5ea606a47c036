"""Workers: a card each, and what operators may have them do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from nicegui import ui

from batch_admin import show
from batch_admin.dialogs import confirmed
from batch_admin.keyed import Keyed
from batch_admin.live import HEARTBEATS
from batch_admin.shell import Page, heading, notice
from batch_admin.view import View
from batch_admin.widgets import Facts, PulseChart, PulsePoint
from batch_admin.workers_now import WorkerNow, workers
from vllm_batch import worker_orders
from vllm_batch.errors import Rejected
from vllm_batch.events import Recorded
from vllm_batch.heartbeats import GpuMetrics
from vllm_batch.worker_control import ClearGpu, Command, Kill, Restart

_CHART_SECONDS = 4.0
_IDLE_SECONDS = 2.0
_FIRST_CARDS = 9
"""As many as a screen shows; the others come so many at a time once the page is there."""
_BETWEEN_CARDS_SECONDS = 0.05


class Card:
    """One worker's card; ``update`` shows what has changed."""

    def __init__(self, view: View, worker: WorkerNow) -> None:
        self._view = view
        self._drawn_until = 0.0
        with ui.element("section").classes("panel") as self.element:
            show.named(self.element, f"worker {worker.name}")
            with ui.row().classes("w-full justify-between items-center no-wrap"):
                ui.label(worker.name).classes("section-title ellipsis").props(
                    "role=heading aria-level=2"
                )
                self._state = show.State(worker.state)
            self._facts = Facts(_facts(worker))
            self._chart = PulseChart(
                f"tokens and GPUs of {worker.name}",
                self._new_points(worker),
                gpus=_has_gpus(worker),
            )
            self._has_gpus = _has_gpus(worker)
            ui.space()
            with ui.row().classes("gap-1"):
                button = ui.button("Logs", on_click=lambda: ui.navigate.to(_logs(worker.name)))
                show.named(button.props("flat dense no-caps"), f"Logs of {worker.name}")
                if view.may("operator"):
                    self._actions(worker)
        self._crash_looping = worker.crash_looping

    def fits(self, worker: WorkerNow) -> bool:
        """Tell whether the card has what this worker needs: its buttons and its chart's lanes."""
        same_lanes = self._has_gpus == _has_gpus(worker)
        return same_lanes and self._crash_looping == worker.crash_looping

    def update(self, worker: WorkerNow) -> None:
        """Show the worker as it is now."""
        self._state.set(worker.state)
        self._facts.set(_facts(worker))

    def draw(self, worker: WorkerNow) -> None:
        """Bring the chart up to date."""
        if new := self._new_points(worker):
            self._chart.push(new)

    def _new_points(self, worker: WorkerNow) -> list[PulsePoint]:
        history = worker.pulse.history if worker.pulse else ()
        new = [point for point in history if point[0] > self._drawn_until]
        self._drawn_until = new[-1][0] if new else self._drawn_until
        return new

    def _actions(self, worker: WorkerNow) -> None:
        name, by = worker.name, self._view.user.name
        self._order("Drain and restart", "drain", name, Restart(requested_by=by),
                    "It finishes what runs, then starts anew.")  # fmt: skip
        self._order("Restart now", "restart", name, Restart(requested_by=by, now=True),
                    "What runs now is given back and done again by whoever is free.")  # fmt: skip
        self._order("Clear GPU", "clear the GPU of", name, ClearGpu(requested_by=by),
                    "The engine stops, its leftovers are killed, it starts again.")  # fmt: skip
        self._order("Kill engine", "kill the engine of", name, Kill(requested_by=by),
                    "It is killed at once; the worker starts new ones.")  # fmt: skip
        if worker.crash_looping:
            self._button("Mended", f"take {name} for mended", name, self._mended(name),
                         "The watchdog starts it again.")  # fmt: skip

    def _order(self, label: str, verb: str, name: str, command: Command, effect: str) -> None:
        async def deed() -> str:
            services = self._view.services
            reply = await worker_orders.order(services.store, services.client, name, command)
            if not reply.ok:
                raise Rejected(reply.message)
            return f"{name}: {reply.message}"

        self._button(label, f"{verb} {name}", name, deed, effect)

    def _mended(self, name: str) -> Callable[[], Awaitable[str]]:
        async def deed() -> str:
            store, user = self._view.services.store, self._view.user
            await worker_orders.clear(store, name, requested_by=user.name)
            return f"{name} may start again"

        return deed

    def _button(
        self, label: str, action: str, name: str, deed: Callable[[], Awaitable[str]], effect: str
    ) -> None:
        async def ask() -> None:
            if await confirmed(f"{label}: {name}?", effect, do=label):
                await self._view.act(action, name, deed)

        button = ui.button(label, on_click=ask).props("flat dense no-caps")
        show.named(button, f"{label}: {name}")


async def build(view: View) -> None:
    """Show all cards; one comes and goes with its worker."""
    heading("Workers")
    grid = ui.element("div").classes("cards")
    cards: Keyed[str, WorkerNow, Card] = Keyed(
        grid, lambda _, one: Card(view, one), lambda card, one: card.update(one)
    )
    empty = ui.column().classes("w-full")
    with empty:
        notice("memory", "No workers", "Start one: `vllm-batch up`, or `vllm-batch worker --help`.")

    most = _FIRST_CARDS

    def show_cards() -> int:
        every = workers(view.live, view.services.clock.now())
        found = {one.name: one for one in every[:most]}
        cards.sync({n: one for n, one in found.items() if n not in cards.drawn
                    or cards.drawn[n].fits(one)})  # fmt: skip
        cards.sync(found)  # what did not fit is drawn anew
        empty.set_visibility(not found)
        return len(every)

    async def refresh(_: list[Recorded]) -> None:
        show_cards()

    async def show_the_rest() -> None:
        nonlocal most
        await ui.context.client.connected()
        while most < show_cards():
            most += _FIRST_CARDS
            await asyncio.sleep(_BETWEEN_CARDS_SECONDS)
        most = sys.maxsize

    async def redraw(_: list[Recorded]) -> None:
        for one in workers(view.live, view.services.clock.now()):
            if one.name in cards.drawn:
                cards.drawn[one.name].draw(one)

    show_cards()
    view.keep(show_the_rest())
    view.refresh_on({"worker", HEARTBEATS}, refresh, idle_seconds=_IDLE_SECONDS)
    view.refresh_on({HEARTBEATS}, redraw, seconds=_CHART_SECONDS)


def _facts(worker: WorkerNow) -> list[tuple[str, str]]:
    seen = worker.view
    age = "never" if worker.age_seconds is None else f"{worker.age_seconds:.0f} s ago"
    facts = [
        ("Heartbeat", age),
        ("Engine", f"{seen.engine} {seen.version}"),
        ("Models", ", ".join(seen.models) or "none yet"),
        ("Where", f"{seen.host}, process {seen.pid}"),
    ]
    if worker.pulse is not None and seen.ended_at is None:
        beat = worker.pulse.last
        facts += [
            ("In flight", f"{beat.in_flight} of {beat.in_flight_max}, {beat.leases} leases"),
            ("Requests/s", show.number(beat.requests_per_second)),
            ("Tokens/s", show.number(beat.output_tokens_per_second)),
            *((f"GPU {gpu.index}", _gpu(gpu)) for gpu in beat.gpus),
            ("Log", f"{beat.log_errors} errors, {beat.log_warnings} warnings"),
        ]  # fmt: skip
    if seen.reason:
        facts.append(("Reason", seen.reason))
    if worker.deaths:
        facts.append(("Deaths", str(worker.deaths)))
    return facts


def _gpu(gpu: GpuMetrics) -> str:
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    said = [gpu.name]
    if used is not None and total:
        said.append(f"{show.size(used)} of {show.size(total)}")
    if gpu.utilization_percent is not None:
        said.append(f"{gpu.utilization_percent} % busy")
    if gpu.temperature_celsius is not None:
        said.append(f"{gpu.temperature_celsius} °C")
    return ", ".join(said)


def _has_gpus(worker: WorkerNow) -> bool:
    return worker.pulse is not None and bool(worker.pulse.last.gpus)


def _logs(name: str) -> str:
    return f"/admin/worker-logs?{urlencode({'worker': name})}"


PAGE = Page(path="/workers", title="Workers", build=build, icon="memory")
