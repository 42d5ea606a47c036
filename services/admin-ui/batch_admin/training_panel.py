"""Training runs of one labeling project: what became of them, their loss; promote, roll back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nicegui import ui

from batch_admin import dialogs, show
from batch_admin.keyed import Boxes
from batch_admin.shell import section
from batch_admin.view import View
from vllm_batch import training_runs
from vllm_batch.aggregates.training import PROMOTED_BY_HAND, Run, RunStatus
from vllm_batch.events import TrainingProgressed
from vllm_batch.messaging import subjects

RUNS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class RunLine:
    """What a run's line shows: it is drawn anew only when this is another."""

    run_id: str
    status: RunStatus
    requested_at: datetime
    said: str


class TrainingPanel:
    """The runs, the newest first, and what operators may do about them."""

    def __init__(self, view: View, project: str) -> None:
        self._view = view
        self._project = project
        self._chosen = ""
        self._by_id: dict[str, Run] = {}
        with ui.element("div").classes("panel"):
            with ui.row().classes("w-full items-center justify-between"):
                section("Training runs")
                if view.may("operator"):
                    with ui.row().classes("gap-1"):
                        ui.button("Train now", on_click=self._train).props("flat dense no-caps")
                        ui.button("Roll back", on_click=self._roll_back).props(
                            "flat dense no-caps color=negative"
                        )
            self._none = ui.label(
                'None yet. One begins after enough annotations are validated, or with "Train now".'
            ).classes("dim")
            self._runs: Boxes[str, RunLine] = Boxes(ui.column().classes("w-full gap-2"), self._show)
            self._more = ui.label().classes("dim")
            self._curve = show.chart(_curve([]), "loss over the steps of a training run")

    async def refresh(self) -> None:
        """Show the runs as they are; the curve is that of the newest until another is chosen."""
        every = self._view.live.runs.of_project(self._project)
        runs = every[::-1][:RUNS_SHOWN]
        self._more.set_text(f"and {len(every) - len(runs):,} older ones")
        self._more.set_visibility(len(every) > len(runs))
        self._by_id = {run.run_id: run for run in runs}
        self._runs.sync(
            {
                run.run_id: RunLine(run.run_id, run.status, run.requested_at, _said(run))
                for run in runs
            }
        )
        self._none.set_visibility(not runs)
        self._curve.set_visibility(bool(runs))
        if runs:
            await self._draw(self._chosen or runs[0].run_id)

    def _show(self, line: RunLine) -> None:
        run_id = line.run_id
        with ui.row().classes("w-full items-center gap-3"):
            ui.label(run_id).classes("mono")
            show.state(line.status.value)
            show.moment(int(line.requested_at.timestamp()))
            ui.label(line.said).classes("dim grow").style("overflow-wrap:anywhere")
            button = ui.button("Loss", on_click=lambda: self._choose(run_id))
            show.named(button.props("flat dense no-caps"), f"Loss of {run_id}")
            if line.status in PROMOTED_BY_HAND and self._view.may("operator"):
                button = ui.button("Promote", on_click=lambda: self._promote(self._by_id[run_id]))
                show.named(button.props("flat dense no-caps"), f"Promote {run_id}")

    async def _choose(self, run_id: str) -> None:
        self._chosen = run_id
        await self._draw(run_id)

    async def _draw(self, run_id: str) -> None:
        said: list[TrainingProgressed] = []
        subject = subjects.aggregate("training", run_id)
        async for batch in self._view.services.store.read(subject):
            said += [r.event for r in batch if isinstance(r.event, TrainingProgressed)]
        self._curve.options.clear()
        self._curve.options.update(_curve(said))
        self._curve.update()

    async def _train(self) -> None:
        async def deed() -> str:
            run = await training_runs.request(
                self._view.services.store, self._project, requested_by=self._view.user.name
            )
            return f"{run.run_id} was asked for"

        await self._view.act("train a model", self._project, deed)

    async def _roll_back(self) -> None:
        async def deed() -> str:
            run = await training_runs.roll_back(
                self._view.services.store, self._project, requested_by=self._view.user.name
            )
            assert run.promoted is not None  # noqa: S101 - what is rolled back was promoted
            return f"{run.promoted.replaced} answers again"

        effect = "The version answers again that the newest promotion replaced."
        if await dialogs.confirmed("Roll back?", effect, do="Roll back"):
            await self._view.act("roll a model back", self._project, deed)

    async def _promote(self, run: Run) -> None:
        assert run.prepared is not None  # noqa: S101 - what was judged was prepared
        assert run.evaluated is not None  # noqa: S101 - and measured
        prepared, measured = run.prepared, run.evaluated

        async def deed() -> str:
            await training_runs.promote(
                self._view.services.store, run.run_id, requested_by=self._view.user.name
            )
            return f"{measured.model} answers for {prepared.alias} from now on"

        effect = (
            f"{prepared.alias} means {measured.model} from now on, although it was measured at "
            f"{show.share(measured.after)} against {show.share(measured.before)}."
        )
        if await dialogs.confirmed(f"Promote {measured.model}?", effect, do="Promote"):
            await self._view.act("promote a model", measured.model, deed)


def _said(run: Run) -> str:
    parts = [f"by {run.requested.trigger}"]
    if run.progress is not None and not run.ended:
        parts.append(f"step {run.progress.step} of {run.progress.steps}")
    if run.evaluated is not None:
        before, after = show.share(run.evaluated.before), show.share(run.evaluated.after)
        parts.append(f"{run.evaluated.model}: {before} → {after} over {run.evaluated.tasks} tasks")
    ended = run.failed or run.rejected
    if ended is not None:
        parts.append(ended.reason)
    return " · ".join(parts)


def _curve(said: list[TrainingProgressed]) -> dict[str, Any]:
    options = show.lines(
        ("loss", [(one.step / 1000, one.loss) for one in said if one.loss is not None]),
        (
            "validation loss",
            [
                (one.step / 1000, one.validation_loss)
                for one in said
                if one.validation_loss is not None
            ],
        ),
    )
    options["xAxis"] = {"type": "value", "axisLabel": {"color": "#7d8a9a"}, "name": "step"}
    return options
