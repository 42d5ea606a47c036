"""Labeling: the projects of Label Studio that we serve, and how far each is."""

from __future__ import annotations

from nicegui import ui

from batch_admin import show
from batch_admin.keyed import Boxes
from batch_admin.shell import Page, heading, notice
from batch_admin.view import View
from batch_admin.widgets import Facts
from vllm_batch.events import Recorded
from vllm_batch.projections.admin_reads import LabelingSummary

NOUNS = frozenset({"labeling", "annotation", "training"})


async def build(view: View) -> None:
    """Show a card per project."""
    heading("Labeling")
    grid = ui.element("div").classes("cards")
    empty = ui.column().classes("w-full")
    with empty:
        notice(
            "rate_review", "No labeling projects",
            "Make one in Label Studio and serve it with `vllm-batch label configure`.",
        )  # fmt: skip

    cards: Boxes[str, tuple[LabelingSummary, str]] = Boxes(grid, _card, classes="")

    async def refresh(_: list[Recorded]) -> None:
        found = await view.services.reads.labeling_projects()
        cards.sync({one.project: (one, _training(view, one.project)) for one in found})
        empty.set_visibility(not found)

    await refresh([])
    view.refresh_on(NOUNS, refresh, reads=True)


def _card(shown: tuple[LabelingSummary, str]) -> None:
    one, training = shown
    title = one.title or f"Project {one.project}"
    with show.named(ui.element("section").classes("panel h-full"), f"project {one.project}"):
        with ui.row().classes("w-full justify-between items-center no-wrap"):
            with ui.element("div").props("role=heading aria-level=2"):
                ui.link(title, f"/labeling/{one.project}").classes("section-title")
            ui.label("connected" if one.connected else "not connected").classes(
                f"state {'good' if one.connected else 'warn'}"
            )
        show.bar(one.validated, one.flagged, one.annotations)
        Facts(
            [
                ("Model", one.model or "none: not configured"),
                ("Tasks", f"{one.tasks:,}"),
                ("Annotations", f"{one.annotations:,}"),
                ("Validated", f"{one.validated:,}, {one.flagged:,} flagged"),
                ("Ground truth", f"{one.ground_truth:,}"),
                ("Accuracy", show.share(one.accuracy)),
                ("Training", training),
            ]
        )


def _training(view: View, project: str) -> str:
    runs = view.live.runs.of_project(project)
    return f"{len(runs)} runs, the last one {runs[-1].status.value}" if runs else "no runs"


PAGE = Page(path="/labeling", title="Labeling", build=build, icon="rate_review")
