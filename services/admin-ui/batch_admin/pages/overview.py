"""Overview: pace, queues, running batches, workers, cost today, and what needs attention."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

from nicegui import ui

from batch_admin import show
from batch_admin.attention import troubles
from batch_admin.keyed import Keyed
from batch_admin.live import HEARTBEATS
from batch_admin.open_batches import OpenBatch, Queue
from batch_admin.shell import Page, heading, notice, section
from batch_admin.view import View
from batch_admin.widgets import Progress
from batch_admin.workers_now import WorkerNow, workers
from vllm_batch.events import Recorded
from vllm_batch.ids import JobId

BATCHES_SHOWN = 12
_CHART_SECONDS = 5.0
_IDLE_SECONDS = 5.0


class Overview:
    """The page: everything is drawn once and then only what has changed is sent."""

    def __init__(self, view: View) -> None:
        self._view = view
        with ui.element("div").classes("tiles"):
            self._requests = show.Tile("Requests / s")
            self._tokens = show.Tile("Output tokens / s")
            self._queue = show.Tile("Queue")
            self._health = show.Tile("Workers")
            self._gpu = show.Tile("GPU memory")
            self._cost = show.Tile("Cost today")
        self._attention = ui.element("div").classes("panel").props("role=alert")
        self._troubles: list[tuple[str, str]] = []
        self._attention.set_visibility(False)
        with ui.element("div").classes("panel"):
            section("Last hour")
            self._chart = show.chart(
                _pace(view), "requests and output tokens per second, last hour"
            )
        with ui.element("div").classes("two"):
            with ui.element("div").classes("panel"):
                section("Running batches")
                with ui.column().classes("w-full") as self._no_batches:
                    notice("task_alt", "Nothing is running", "Start a batch on the page Batches.")
                self._batches: Keyed[JobId, OpenBatch, Batch] = Keyed(
                    ui.column().classes("w-full gap-3"), self._draw_batch, self._update_batch
                )
                self._more = ui.link("", "/batches?status=running")
            with ui.element("div").classes("panel"):
                section("Queue by model")
                self._no_queue = ui.label("Nothing waits.").classes("dim")
                self._queues: Keyed[str, Queue, QueueLine] = Keyed(
                    ui.column().classes("w-full gap-2"), QueueLine, QueueLine.update
                )
        with ui.element("div").classes("panel"):
            section("Workers")
            with ui.column().classes("w-full") as self._no_workers:
                notice("memory", "No workers", "Start one: `vllm-batch up`.")
            self._workers: Keyed[str, WorkerNow, Worker] = Keyed(
                ui.element("div").classes("chips"), Worker, Worker.update
            )

    async def refresh(self, _: list[Recorded]) -> None:
        """Show where everything is now."""
        view, now = self._view, self._view.services.clock.now()
        found = workers(view.live, now)
        requests, tokens = view.live.pace()
        queues = view.live.batches.queues()
        waiting = sum(queue.requests for queue in queues.values())
        ill = sum(one.needs_attention for one in found)
        self._requests.set(show.number(requests), "now, all workers")
        self._tokens.set(show.number(tokens), "now, all workers")
        self._queue.set(show.number(waiting), "requests without a result")
        self._health.set(f"{len(found) - ill} of {len(found)}", "healthy")
        self._gpu.set(*_gpu(found))
        self._show_batches(now)
        self._queues.sync(queues)
        self._no_queue.set_visibility(not queues)
        self._workers.sync({one.name: one for one in found})
        self._no_workers.set_visibility(not found)
        await self._ask(found, queues)

    async def redraw(self, _: list[Recorded]) -> None:
        """Bring the chart up to date."""
        self._chart.options["series"] = _pace(self._view)["series"]
        self._chart.update()

    async def _ask(self, found: list[WorkerNow], queues: dict[str, Queue]) -> None:
        """Show what only the read models know."""
        live = self._view.live
        figures = await self._view.services.today.figures(live.position)
        if figures is None:
            self._cost.set("-", "Postgres is away")
        else:
            self._cost.set(f"{figures.cost:,.2f}", f"{show.number(figures.tokens)} tokens")
        self._show_troubles(troubles(live, found, queues, figures))

    def _show_batches(self, now: datetime) -> None:
        running = self._view.live.batches.batches
        self._now = now
        self._batches.sync(dict(islice(running.items(), BATCHES_SHOWN)))
        self._no_batches.set_visibility(not running)
        self._more.set_text(f"and {len(running) - BATCHES_SHOWN} more")
        self._more.set_visibility(len(running) > BATCHES_SHOWN)

    def _draw_batch(self, job_id: JobId, one: OpenBatch) -> Batch:
        return Batch(job_id, one, self._now)

    def _update_batch(self, drawn: Batch, one: OpenBatch) -> None:
        drawn.update(one, self._now)

    def _show_troubles(self, found: list[tuple[str, str]]) -> None:
        if found == self._troubles:
            return
        self._troubles = found
        self._attention.clear()
        self._attention.set_visibility(bool(found))
        with self._attention:
            section("Needs attention")
            for text, target in found:
                with ui.row().classes("items-center gap-2 no-wrap"):
                    ui.icon("warning").style("color:var(--bad)").props("aria-hidden=true")
                    ui.link(text, target)


class Batch:
    """A running batch: how far it is and how long it takes."""

    def __init__(self, job_id: JobId, one: OpenBatch, now: datetime) -> None:
        with ui.column().classes("w-full gap-1") as self.element:
            with ui.row().classes("w-full justify-between gap-2"):
                ui.link(job_id, f"/batches/{job_id}").classes("mono")
                self._text = ui.label().classes("dim")
            self._bar = Progress()
        self.update(one, now)

    def update(self, one: OpenBatch, now: datetime) -> None:
        """Show the batch as it is now."""
        done, eta = one.done, one.eta_seconds(now)
        left = "being checked" if not one.total else f"{done:,} of {one.total:,}"
        self._text.set_text(left + (f" · {show.duration(eta)} left" if eta else ""))
        self._bar.set(done - one.failed, one.failed, one.total)


class QueueLine:
    """The open work of one model."""

    def __init__(self, model: str, queue: Queue) -> None:
        with ui.row().classes("w-full justify-between gap-2") as self.element:
            ui.label(model).classes("font-medium")
            self._text = ui.label().classes("dim")
        self.update(queue)

    def update(self, queue: Queue) -> None:
        """Show the queue as it is now."""
        chunks = f"chunks: {queue.ready:,} ready, {queue.leased:,} leased"
        self._text.set_text(f"{queue.requests:,} requests · {chunks}")


class Worker:
    """A worker in a few words."""

    def __init__(self, name: str, one: WorkerNow) -> None:
        with ui.element("div").classes("tile") as self.element:
            with ui.row().classes("w-full justify-between gap-2 no-wrap"):
                ui.link(name, "/workers").classes("font-medium ellipsis")
                self._state = show.State(one.state)
            self._text = ui.label().classes("note")
        self.update(one)

    def update(self, one: WorkerNow) -> None:
        """Show the worker as it is now."""
        self._state.set(one.state)
        if one.pulse is not None:
            beat = one.pulse.last
            pace = show.number(beat.output_tokens_per_second)
            self._text.set_text(f"{beat.in_flight} in flight · {pace} tok/s")


async def build(view: View) -> None:
    """Show everything; the figures follow events and heartbeats."""
    heading("Overview")
    page = Overview(view)
    await page.refresh([])
    nouns = {"job", "chunk", "worker", "annotation", "model", HEARTBEATS}
    view.refresh_on(nouns, page.refresh, idle_seconds=_IDLE_SECONDS)
    view.refresh_on({"chunk"}, page.redraw, seconds=_CHART_SECONDS, idle_seconds=60.0)


def _gpu(found: list[WorkerNow]) -> tuple[str, str]:
    gpus = [gpu for one in found if one.pulse for gpu in one.pulse.last.gpus]
    total = sum(gpu.memory_total_bytes or 0 for gpu in gpus)
    if not total:
        return "-", "no GPU reports"
    used = sum(gpu.memory_used_bytes or 0 for gpu in gpus)
    use = [gpu.utilization_percent for gpu in gpus if gpu.utilization_percent is not None]
    busy = f"{sum(use) / len(use):.0f} % busy" if use else "use unknown"
    return f"{100 * used / total:.0f} %", f"of {show.size(total)} · {busy}"


def _pace(view: View) -> dict[str, object]:
    requests, tokens = view.live.rates.series(view.services.clock.now())
    return show.two_scales(("requests/s", list(requests)), ("output tokens/s", list(tokens)))


PAGE = Page(path="/", title="Overview", build=build, icon="dashboard")
