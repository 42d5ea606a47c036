"""What was used and what it cost (beyond OpenAI): one's own project's, or everybody's.

Reads the read models; writes nothing.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from batch_gateway.api.answers import answer, documented
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from vllm_batch import usage_report
from vllm_batch.ids import ProjectId
from vllm_batch.usage_report import UsageLine

router = APIRouter(tags=["Beyond OpenAI"])

Start = Annotated[str, Query(alias="from", description="first day, UTC; default: of the month")]
End = Annotated[str, Query(alias="to", description="last day, UTC; default: today")]
GroupBy = Annotated[str, Query(description="of day, project, key, model, kind, batch, by commas")]
Format = Annotated[str, Query(alias="format", pattern="^(json|csv)$")]


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of [since, until) in Unix seconds, and its sum."""

    object: str = "list"
    since: int
    until: int
    data: list[UsageLine]
    total: UsageLine | None


@router.get("/v1/usage", responses=documented(UsageReport))
async def own_usage(
    api: Api,
    caller: CalledBy,
    *,
    start: Start = "",
    end: End = "",
    group_by: GroupBy = "day,model",
    form: Format = "json",
) -> Response:
    """Report what the key's project has used."""
    return await _report(api, caller.project, period=(start, end), group_by=group_by, form=form)


@router.get("/admin/usage", responses=documented(UsageReport))
async def all_usage(
    api: Api,
    _: CalledBy,
    *,
    project: str | None = None,
    start: Start = "",
    end: End = "",
    group_by: GroupBy = "day,project,model",
    form: Format = "json",
) -> Response:
    """Report what one project or all have used."""
    wanted = ProjectId(project) if project else None
    return await _report(api, wanted, period=(start, end), group_by=group_by, form=form)


async def _report(
    api: Dependencies,
    project: ProjectId | None,
    *,
    period: tuple[str, str],
    group_by: str,
    form: str,
) -> Response:
    since, until = usage_report.period(*period, api.clock.now())
    groups = usage_report.checked_groups([name for name in group_by.split(",") if name])
    lists = await api.reads.fresh_lists()
    rows = await lists.usage(since, until, project, by_batch="batch" in groups)
    lines = usage_report.add_up(rows, groups)
    if form == "csv":
        return Response(usage_report.as_csv(lines, groups), media_type="text/csv")
    total = usage_report.add_up(rows, [])
    return answer(
        UsageReport(since=since, until=until, data=lines, total=total[0] if total else None)
    )
