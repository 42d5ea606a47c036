"""Labeling over HTTP (beyond OpenAI): what ``vllm-batch label`` shows and does, for programs.

Reads the event log, never Postgres. What needs Label Studio or a model, the bridge does: it is
asked over NATS.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from batch_gateway.api.answers import Page, answer, documented, page_of
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal, shown
from vllm_batch.errors import BridgeUnreachable
from vllm_batch.events import LabelingAccuracyMeasured
from vllm_batch.labeling import control, project_report
from vllm_batch.labeling.agreement_report import AgreementReport
from vllm_batch.labeling.control import Command, MarkGroundTruth, MeasureAccuracy, ReportAgreement
from vllm_batch.labeling.project_report import LabelingAccuracy, LabelingProject
from vllm_batch.labeling.projects import ProjectView

router = APIRouter(prefix="/admin/labeling", tags=["Labeling"])


class GroundTruthMark(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an annotation is ground truth now."""

    annotation: str
    ground_truth: bool


Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/projects", responses=documented(Page))
async def list_projects(api: Api, _: CalledBy) -> Response:
    """List the labeling projects."""
    found = (await api.labeling.now()).all()
    return page_of([project_report.of_project(view) for view in found], has_more=False)


@router.get("/projects/{project}", responses=documented(LabelingProject))
async def retrieve_project(project: str, api: Api, _: CalledBy) -> Response:
    """Retrieve a labeling project."""
    return answer(project_report.of_project(await _find(api, project)))


@router.get("/projects/{project}/annotations", responses=documented(Page))
async def list_annotations(
    project: str, api: Api, _: CalledBy, limit: Limit = 100, after: str = ""
) -> Response:
    """List the annotations that are there, with what validation says of them."""
    view = await _find(api, project)
    return _page(dict(view.present()), limit, after)


@router.get("/projects/{project}/flagged", responses=documented(Page))
async def list_flagged(
    project: str, api: Api, _: CalledBy, limit: Limit = 100, after: str = ""
) -> Response:
    """List the annotations that a person should look at, with the reasons."""
    return _page((await _find(api, project)).flagged(), limit, after)


@router.get("/projects/{project}/ground-truth", responses=documented(Page))
async def list_ground_truth(
    project: str, api: Api, _: CalledBy, limit: Limit = 100, after: str = ""
) -> Response:
    """List the annotations that are marked as ground truth."""
    return _page((await _find(api, project)).ground_truth(), limit, after)


@router.post("/projects/{project}/ground-truth/{annotation}", responses=documented(GroundTruthMark))
async def mark_ground_truth(project: str, annotation: str, api: Api, _: CalledBy) -> Response:
    """Mark an annotation as ground truth."""
    return await _mark(api, project, annotation, ground_truth=True)


@router.delete(
    "/projects/{project}/ground-truth/{annotation}", responses=documented(GroundTruthMark)
)
async def unmark_ground_truth(project: str, annotation: str, api: Api, _: CalledBy) -> Response:
    """Make an annotation ground truth no longer."""
    return await _mark(api, project, annotation, ground_truth=False)


@router.get("/projects/{project}/accuracy", responses=documented(LabelingAccuracy))
async def accuracy_history(project: str, api: Api, _: CalledBy, model: str = "") -> Response:
    """Return every measurement of accuracy, of one ``model`` or of all, the newest last."""
    return answer(project_report.history_of(await _find(api, project), model))


@router.post("/projects/{project}/accuracy", responses=documented(LabelingAccuracyMeasured))
async def measure_accuracy(
    project: str, api: Api, caller: CalledBy, model: str | None = None
) -> Response:
    """Ask a model, by default the project's, about every task with ground truth, and record how
    well it answers."""
    command = MeasureAccuracy(project=project, model=model, requested_by=caller.key_id)
    return answer(await _ask(api, command, seconds=api.settings.label_measure_seconds))


@router.get("/projects/{project}/agreement", responses=documented(AgreementReport))
async def agreement(project: str, api: Api, _: CalledBy) -> Response:
    """Return how far the annotators of a project agree."""
    return answer(await _ask(api, ReportAgreement(project=project)))


async def _mark(
    api: Dependencies, project: str, annotation: str, *, ground_truth: bool
) -> Response:
    if not (annotation.isascii() and annotation.isdigit()):
        raise HttpRefusal(404, f"There is no annotation '{shown(annotation)}'.")
    command = MarkGroundTruth(project=project, annotation=annotation, ground_truth=ground_truth)
    return answer(await _ask(api, command))


async def _find(api: Dependencies, project: str) -> ProjectView:
    view = (await api.labeling.now()).find(project)
    if view is None or view.project.deleted:
        raise HttpRefusal(404, f"There is no labeling project '{shown(project)}'.")
    return view


def _page(annotations: dict[str, Any], limit: int, after: str) -> Response:
    found = project_report.of_annotations(annotations)
    if after:
        place = next((n for n, one in enumerate(found) if one.id == after), None)
        if place is None:
            raise HttpRefusal(404, f"There is no annotation '{shown(after)}' in this list.")
        found = found[place + 1 :]
    return page_of(found[:limit], has_more=len(found) > limit)


async def _ask(
    api: Dependencies, command: Command, *, seconds: float = control.ANSWER_SECONDS
) -> dict[str, Any]:
    if api.client is None:
        raise HttpRefusal(503, "This server has no connection to the Label Studio bridge.")
    try:
        return await control.send(api.client, command, seconds)
    except BridgeUnreachable as error:
        raise HttpRefusal(503, f"{error}.", code=error.code) from error
