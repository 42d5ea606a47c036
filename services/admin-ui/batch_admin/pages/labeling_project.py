"""One labeling project: pace, agreement, flagged annotations, accuracy and training."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from nicegui import ui

from batch_admin import show
from batch_admin.accuracy_panel import AccuracyPanel
from batch_admin.pages.labeling import NOUNS
from batch_admin.shell import Page, heading, notice, section
from batch_admin.training_panel import TrainingPanel
from batch_admin.view import View
from vllm_batch.errors import BatchError
from vllm_batch.events import LabelingAccuracyMeasured, Recorded
from vllm_batch.labeling import control
from vllm_batch.labeling.control import ReportAgreement
from vllm_batch.projections.admin_reads import LabelingSummary
from vllm_batch.projections.rows import AnnotationRow

FLAGGED_SHOWN = 50
_PACE_DAYS = 14
_PACE_STEP_SECONDS = 3600
_AGREEMENT_SECONDS = 20.0


class ProjectPage:
    """What the page shows of one project, and how it follows."""

    def __init__(self, view: View, project: str) -> None:
        self._view = view
        self._project = project
        self._tiles = ui.element("div").classes("tiles")
        with ui.element("div").classes("two"):
            with ui.element("div").classes("panel"):
                section("Annotations per hour")
                self._pace = show.chart(show.lines(("annotations", [])), "annotations per hour")
            with ui.element("div").classes("panel"):
                section("Agreement of the annotators")
                self._agreement = ui.column().classes("w-full gap-1")
        self._accuracy = AccuracyPanel(view, project)
        self._training = TrainingPanel(view, project)
        with ui.element("div").classes("panel"):
            section("Flagged annotations")
            self._flagged = ui.column().classes("w-full gap-2")

    async def refresh(self, _: list[Recorded]) -> None:
        """Bring everything up to date that the read models have."""
        reads, now = self._view.services.reads, self._view.services.clock.now()
        found = {one.project: one for one in await reads.labeling_projects()}
        if self._project not in found:
            return
        since = int((now - timedelta(days=_PACE_DAYS)).timestamp())
        pace = await reads.annotation_pace(self._project, since, _PACE_STEP_SECONDS)
        flagged = await reads.flagged(self._project, FLAGGED_SHOWN)
        self._pace.options["series"] = _bars(pace)
        self._pace.options["xAxis"] |= {"min": since * 1000, "max": now.timestamp() * 1000}
        self._pace.update()
        self._flagged.clear()
        with self._flagged:
            _show_flagged(flagged)
            show.rest(len(flagged), found[self._project].flagged)
        await self._accuracy.refresh()
        self._tiles.clear()
        with self._tiles:
            _tiles(found[self._project], self._accuracy.newest)
        await self._training.refresh()

    async def show_agreement(self) -> None:
        """Ask the bridge how far the annotators agree: it alone compares answers."""
        await ui.context.client.connected()
        command = ReportAgreement(project=self._project)
        self._agreement.clear()
        with self._agreement:
            try:
                said = await control.send(self._view.services.client, command, _AGREEMENT_SECONDS)
            except BatchError as error:
                ui.label(f"Nobody can say now: {error}.").classes("dim")
                return
            ui.label(f"{said['tasks']:,} tasks with more than one annotator").classes("dim")
            alpha = said["alpha"]
            ui.label(f"Krippendorff's alpha: {'-' if alpha is None else f'{alpha:.2f}'}")
            for pair in said["annotators"]:
                kappa = "" if pair["kappa"] is None else f", kappa {pair['kappa']:.2f}"
                ui.label(
                    f"{pair['one']} and {pair['other']}: {show.share(pair['mean'])}{kappa}"
                    f" over {pair['tasks']} tasks"
                )


async def build(view: View) -> None:
    """Show the project; it follows its events."""
    name = view.params["project"]
    known = {one.project: one for one in await view.services.reads.labeling_projects()}
    if name not in known:
        heading("Labeling project")
        notice("search_off", "No such project", "It may not be in the read models yet: reload.")
        return
    heading(known[name].title or f"Project {name}")
    page = ProjectPage(view, name)
    await page.refresh([])
    view.refresh_on(NOUNS | {"model"}, page.refresh, reads=True)
    view.keep(page.show_agreement())


def _bars(pace: list[tuple[int, int]]) -> list[dict[str, Any]]:
    data = [[(step + _PACE_STEP_SECONDS / 2) * 1000, count] for step, count in pace]
    return [{"name": "annotations", "type": "bar", "barMaxWidth": 24, "data": data}]


def _tiles(one: LabelingSummary, measured: LabelingAccuracyMeasured | None) -> None:
    show.tile("Tasks", show.number(one.tasks))
    show.tile("Annotations", show.number(one.annotations), f"{one.pending:,} to be looked at")
    show.tile("Validated", show.number(one.validated))
    show.tile("Flagged", show.number(one.flagged), "for a person")
    show.tile("Ground truth", show.number(one.ground_truth))
    if measured is None:
        show.tile("Accuracy", "-", "not measured yet")
    else:
        show.tile("Accuracy", show.share(measured.accuracy), measured.model_version)


def _show_flagged(found: list[AnnotationRow]) -> None:
    if not found:
        ui.label("None: nothing speaks against the annotations so far.").classes("dim")
    for one in found:
        with ui.row().classes("w-full gap-3 items-baseline"):
            ui.label(f"Annotation {one.annotation} of task {one.task or '?'}").classes(
                "font-medium"
            )
            ui.label(", ".join(reason.replace("_", " ") for reason in one.reasons)).classes(
                "state bad"
            )
            show.moment(one.changed_at)
            ui.label(" ".join(one.details)).classes("dim").style("overflow-wrap:anywhere")


PAGE = Page(path="/labeling/{project}", title="Labeling project", build=build)
