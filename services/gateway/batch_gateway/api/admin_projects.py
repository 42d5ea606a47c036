"""Projects over HTTP (beyond OpenAI): what each has and may use, and their end.

Appends ``project.*`` with the key that asked. A project begins with its first key.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta
from starlette.responses import Response

from batch_gateway.api.answers import answer, documented, takes
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import shown
from batch_gateway.api.request_body import Body, checked_integer, invalid, read_object, wrong_type
from vllm_batch import ids, project_limits
from vllm_batch.errors import NotFound
from vllm_batch.events.project import ProjectConfigured
from vllm_batch.ids import ProjectId
from vllm_batch.project_limits import ProjectLimits, month_of
from vllm_batch.projections.rows import ProjectUse

router = APIRouter(prefix="/admin/projects", tags=["Admin"])

LIMIT_MAX = 2**53
_NAME = re.compile(r"[\w.-]{1,64}")
_COUNTS = ("requests_per_minute", "tokens_per_minute", "queued_requests_max", "storage_bytes_max")


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project: the limits that count for it (0: none), and what it has. ``budget_reached``: the
    largest share of this month's budget that is known to be used up: 0, 0.8 or 1."""

    id: str
    object: str = "project"
    closed: bool
    requests_per_minute: int
    tokens_per_minute: int
    queued_requests_max: int
    storage_bytes_max: int
    budget_per_month: float | None
    budget_stops: bool
    budget_reached: float
    use: ProjectUse


class Projects(msgspec.Struct, frozen=True, kw_only=True):
    """All projects that have or had a key, or limits of their own."""

    object: str = "list"
    data: list[Project]


class LimitsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A project's limits: all of them; null or absent is the setting's default, 0 is no limit."""

    requests_per_minute: Annotated[int, Meta(ge=0)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=0)] | None = None
    queued_requests_max: Annotated[int, Meta(ge=0)] | None = None
    storage_bytes_max: Annotated[int, Meta(ge=0)] | None = None
    budget_per_month: Annotated[float, Meta(ge=0)] | None = None
    budget_stops: bool = False


async def _project(api: Dependencies, project: ProjectId, limits: ProjectLimits) -> Project:
    lists = await api.reads.fresh_lists()
    return Project(
        id=project,
        closed=limits.is_closed(project),
        budget_reached=limits.reached_share(project, month_of(api.clock.now())),
        use=await lists.project_use(project),
        **limits.of(project)._asdict(),
    )


async def _names(api: Dependencies, limits: ProjectLimits) -> list[ProjectId]:
    lists = await api.reads.fresh_lists()
    with_keys = [row.project for row in await lists.api_keys()]
    return list(dict.fromkeys([*with_keys, *(c.project for c in limits.configured)]))


@router.get("", responses=documented(Projects))
async def list_projects(api: Api, _: CalledBy) -> Response:
    """List the projects."""
    limits = await project_limits.load(api.store, api.settings)
    names = await _names(api, limits)
    return answer(Projects(data=[await _project(api, name, limits) for name in names]))


@router.get("/{project}", responses=documented(Project))
async def retrieve_project(project: str, api: Api, _: CalledBy) -> Response:
    """Retrieve a project."""
    limits = await project_limits.load(api.store, api.settings)
    if project not in await _names(api, limits):
        raise NotFound(f"There is no project '{shown(project)}'.")
    return answer(await _project(api, ProjectId(project), limits))


@router.delete("/{project}", responses=documented(Project))
async def purge_project(project: str, api: Api, caller: CalledBy) -> Response:
    """Close a project for good: its keys open nothing from now on, its batches are cancelled, its
    files deleted. The orchestrator does it; ``project.purged`` says when it is done."""
    limits = await project_limits.load(api.store, api.settings)
    if project not in await _names(api, limits):
        raise NotFound(f"There is no project '{shown(project)}'.")
    if not limits.is_closed(ProjectId(project)):
        recorded = await project_limits.purge(
            api.store, ProjectId(project), requested_by=caller.key_id
        )
        await api.limits.reached(recorded.seq, api.settings.read_your_writes_seconds)
    limits = await project_limits.load(api.store, api.settings)
    return answer(await _project(api, ProjectId(project), limits))


@router.put("/{project}/limits", responses=documented(Project), openapi_extra=takes(LimitsRequest))
async def set_limits(project: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Set a project's limits; they count at once, on every gateway."""
    if not _NAME.fullmatch(project):
        raise invalid("project", "1 to 64 letters, digits, dots, dashes, underscores")
    body = await read_object(request, api.settings)
    event = ProjectConfigured(
        project_key=ids.project_key(project),
        project=ProjectId(project),
        requested_by=caller.key_id,
        budget_per_month=_budget(body),
        budget_stops=_flag(body, "budget_stops"),
        **{name: _count(body, name) for name in _COUNTS},
    )
    recorded = await project_limits.record(api.store, event)
    await api.limits.reached(recorded.seq, api.settings.read_your_writes_seconds)
    limits = await project_limits.load(api.store, api.settings)
    return answer(await _project(api, ProjectId(project), limits))


def _count(body: Body, name: str) -> int | None:
    value = body.get(name)
    return None if value is None else checked_integer(value, name, 0, LIMIT_MAX)


def _budget(body: Body) -> float | None:
    value = body.get("budget_per_month")
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type("budget_per_month", "a number", value)
    if value < 0:
        raise invalid("budget_per_month", "it is negative")
    return float(value)


def _flag(body: Body, name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise wrong_type(name, "a boolean", value)
    return value
