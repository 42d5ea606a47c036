"""``vllm-batch usage``: tokens and cost, from the read models."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from vllm_batch.ids import JobId
    from vllm_batch.projections.rows import BatchUsageRow, UsageRow
    from vllm_batch.settings import Settings
    from vllm_batch.usage_report import UsageLine


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def usage(
        start: Annotated[
            str, typer.Option("--from", help="First day, UTC; default: of the month.")
        ] = "",
        end: Annotated[str, typer.Option("--to", help="Last day, UTC; default: today.")] = "",
        project: Annotated[str, typer.Option(help="Only this project's.")] = "",
        by: Annotated[
            str, typer.Option(help="What to add up by: day, project, key, model, kind, batch.")
        ] = "day,project,model",
        batch: Annotated[
            list[str] | None, typer.Option(help="Only of this batch; several times for several.")
        ] = None,
        csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
        home: HomeOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show what was used and what it cost at the models' prices."""
        from vllm_batch import usage_report
        from vllm_batch.cli.service_settings import settings_of

        settings = settings_of(home)
        if batch:
            _print_batches(asyncio.run(_of_batches(settings, batch)), as_json)
            return
        groups = usage_report.checked_groups([name for name in by.split(",") if name])
        since, until = usage_report.period(start, end, datetime.now(UTC))
        by_batch = "batch" in groups
        rows = asyncio.run(_of_period(settings, since, until, project, by_batch=by_batch))
        lines = usage_report.add_up(rows, groups)
        if as_json:
            output.print_json(msgspec.to_builtins(lines))
        elif csv:
            print(usage_report.as_csv(lines, groups), end="")
        else:
            cells = [[str(getattr(line, group) or "-") for group in groups] for line in lines]
            table = [[*names, *_counts(line)] for names, line in zip(cells, lines, strict=True)]
            if groups:
                names = ["total", *[""] * (len(groups) - 1)]
                table += [[*names, *_counts(total)] for total in usage_report.add_up(rows, [])]
            print_rows((*groups, *_COLUMNS), table)


_COLUMNS = ("requests", "failed", "input tokens", "output tokens", "GPU s", "Wh", "cost")
_JOULES_PER_WATT_HOUR = 3600


def _counts(line: UsageLine | BatchUsageRow) -> list[str]:
    names = ("requests", "failed", "input_tokens", "output_tokens")
    watt_hours = line.energy_joules / _JOULES_PER_WATT_HOUR
    cells = [f"{getattr(line, name):,}" for name in names]
    return [*cells, f"{line.gpu_seconds:,.1f}", f"{watt_hours:,.2f}", f"{line.cost:,.4f}"]


async def _of_period(
    settings: Settings, since: int, until: int, project: str, *, by_batch: bool
) -> list[UsageRow]:
    from vllm_batch.ids import ProjectId
    from vllm_batch.projections.read_models import COMMAND_ANSWER_SECONDS, ReadModels

    async with ReadModels.connect(settings, answer_seconds=COMMAND_ANSWER_SECONDS) as models:
        wanted = ProjectId(project) if project else None
        return await models.usage(since, until, wanted, by_batch=by_batch)


async def _of_batches(settings: Settings, batches: list[str]) -> list[BatchUsageRow]:
    from vllm_batch.projections.read_models import COMMAND_ANSWER_SECONDS, ReadModels

    wanted: list[JobId] = list(batches)  # type: ignore[arg-type]
    async with ReadModels.connect(settings, answer_seconds=COMMAND_ANSWER_SECONDS) as models:
        return await models.batch_usage(wanted)


def _print_batches(rows: list[BatchUsageRow], as_json: bool) -> None:
    if as_json:
        output.print_json(msgspec.to_builtins(rows))
        return
    print_rows(
        ("id", "project", "model", *_COLUMNS),
        ([row.job_id, row.project, row.model, *_counts(row)] for row in rows),
    )
