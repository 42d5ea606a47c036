"""``vllm-batch project``: tenants, what each may use and has, and their end.

Writes to the event log itself; the API need not run.
"""

from __future__ import annotations

import getpass
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.keys import all_keys, with_store
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import NotFound

if TYPE_CHECKING:
    from vllm_batch.event_store import EventStore
    from vllm_batch.ids import ProjectId
    from vllm_batch.project_limits import Limits, ProjectLimits
    from vllm_batch.projections.rows import ProjectUse

_NAME = re.compile(r"[\w.-]{1,64}")

app = typer.Typer(
    help="Projects: what each may use and has; each begins with its first key.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The project's name.", show_default=False)]


@app.command(name="list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the projects with their limits (0: none) and what they have."""
    rows = [_row(name, limits, use) for name, limits, use in _all(home)]
    if as_json:
        output.print_json(rows)
        return
    print_rows(
        ("project", "batches", "in line", "stored", "calls/min", "tokens/min", "budget/month"),
        (
            (
                str(row["project"]) + (" (closed)" if row["closed"] else ""),
                *(str(row[name]) for name in ("batches", "queued_requests", "storage_bytes")),
                *(str(row[name] or "-") for name in ("requests_per_minute", "tokens_per_minute")),
                _budget(row),
            )
            for row in rows
        ),
    )


@app.command()
def limit(
    project: Name,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Calls that start work.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Tokens of online requests.")
    ] = None,
    queued_requests_max: Annotated[
        int | None, typer.Option(min=0, help="Requests in unfinished batches.")
    ] = None,
    storage_bytes_max: Annotated[int | None, typer.Option(min=0, help="Bytes in files.")] = None,
    budget_per_month: Annotated[
        float | None, typer.Option(min=0, help="In the currency of the models' prices.")
    ] = None,
    stop: Annotated[
        bool | None, typer.Option("--stop/--warn", help="What happens when the budget is used up.")
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Begin from the defaults, not from what counts now.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set limits of a project, and show them all. 0 is no limit; what is not given stays."""
    from vllm_batch import ids

    if not _NAME.fullmatch(project):
        raise typer.BadParameter("1 to 64 letters, digits, dots, dashes, underscores")
    wanted = {
        "requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute,
        "queued_requests_max": queued_requests_max, "storage_bytes_max": storage_bytes_max,
        "budget_per_month": budget_per_month, "budget_stops": stop,
    }  # fmt: skip
    given = {name: value for name, value in wanted.items() if value is not None}
    limits = _change(home, ids.ProjectId(project), given, reset=reset)._asdict()
    if as_json:
        output.print_json({"project": project, **limits})
        return
    shown = ((name, "-" if value in {0, None} else str(value)) for name, value in limits.items())
    print_rows((f"{project}: limit", "from now on"), shown)


def _change(home: Path | None, project: ProjectId, given: dict[str, Any], *, reset: bool) -> Limits:
    """Record what changes, if anything does; return the limits that count then."""
    from vllm_batch import ids, project_limits
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.events.project import ProjectConfigured

    async def deed(store: EventStore) -> Limits:
        limits = await project_limits.load(store, settings_of(home))
        if given or reset:
            before = None if reset else limits.given(project)
            fields = msgspec.structs.asdict(before) if before else {}
            key = ids.project_key(project)
            who = {"project_key": key, "project": project, "requested_by": getpass.getuser()}
            event = ProjectConfigured(**{**fields, **given, **who})
            limits.apply(await project_limits.record(store, event))
        return limits.of(project)

    return with_store(home, deed)


@app.command()
def purge(
    project: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close a project for good: its keys, batches and files go. The orchestrator does it."""
    from vllm_batch import ids, project_limits

    known = {name for name, _, _ in _all(home)}
    if project not in known:
        raise NotFound(f"there is no project {project}")
    if not yes:
        typer.confirm(f"Delete everything that {project} has? This cannot be undone.", abort=True)
    with_store(
        home,
        lambda store: project_limits.purge(
            store, ids.ProjectId(project), requested_by=getpass.getuser()
        ),
    )
    if as_json:
        output.print_json({"project": project, "purge_requested": True})
    else:
        print(f"{project} is closed; `vllm-batch events tail 'project.*.*'` says when all is gone")


def _all(home: Path | None) -> list[tuple[str, ProjectLimits, ProjectUse]]:
    from vllm_batch import project_limits
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.projections.read_models import COMMAND_ANSWER_SECONDS, ReadModels

    settings = settings_of(home)

    async def read(store: EventStore) -> list[tuple[str, ProjectLimits, ProjectUse]]:
        limits = await project_limits.load(store, settings)
        keys = [row.project for row in await all_keys(store)]
        names = dict.fromkeys([*keys, *(c.project for c in limits.configured)])
        async with ReadModels.connect(settings, answer_seconds=COMMAND_ANSWER_SECONDS) as models:
            return [(name, limits, await models.project_use(name)) for name in names]

    return with_store(home, read)


def _budget(row: dict[str, object]) -> str:
    """Return the budget and how much of it is known to be used: it is said at 80 and at 100 %."""
    if row["budget_per_month"] is None:
        return "-"
    reached = float(str(row["budget_reached"]))
    return f"{row['budget_per_month']:g}" + (f" ({reached:.0%} used)" if reached else "")


def _row(name: str, limits: ProjectLimits, use: ProjectUse) -> dict[str, object]:
    import msgspec

    from vllm_batch.ids import ProjectId
    from vllm_batch.project_limits import month_of

    project = ProjectId(name)
    return {
        "project": name,
        "closed": limits.is_closed(project),
        **limits.of(project)._asdict(),
        "budget_reached": limits.reached_share(project, month_of(datetime.now(UTC))),
        **msgspec.to_builtins(use),
    }
