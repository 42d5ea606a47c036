"""``vllm-batch health``: what is wrong, in words, and what to do next."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from vllm_batch.health.report import HealthReport
    from vllm_batch.settings import Settings

_POSTGRES_SECONDS = 5.0
_MARKS = {
    "ok": "[green]✓[/]", "warning": "[yellow]![/]", "critical": "[bold red]✗[/]",
    "unknown": "[magenta]?[/]",
}  # fmt: skip
_WORDS = {
    "ok": "[green]All is well.[/]",
    "degraded": "[yellow]Something is to be done.[/]",
    "failing": "[bold red]Something stands still.[/]",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Stack")(health)


def health(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say what is wrong and what to do next. Exit code 1 when something stands still."""
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.telemetry import configure_logs

    settings = settings_of(home)
    # What is away is said in words below, once.
    configure_logs(settings.model_copy(update={"log_level": "ERROR"}), service="cli")
    report = asyncio.run(_examine(settings))
    if as_json:
        output.print_json(msgspec.to_builtins(report))
    else:
        _show(report)
    if report.status == "failing":
        raise typer.Exit(output.ExitCode.FAILED)


async def _examine(settings: Settings) -> HealthReport:
    from vllm_batch.blobs import open_blobs
    from vllm_batch.clock import SystemClock
    from vllm_batch.errors import EventStoreUnavailable
    from vllm_batch.event_store import jetstream
    from vllm_batch.health.examine import examine, log_away
    from vllm_batch.health.report import report_of
    from vllm_batch.health.sources import Sources
    from vllm_batch.projections.read_models import ReadModels

    now = SystemClock().now()
    try:
        async with (
            jetstream.connect(settings, source="cli") as store,
            ReadModels.connect(settings, answer_seconds=_POSTGRES_SECONDS) as lists,
        ):

            async def checkpoint() -> int | None:
                return max(lists.seq, 0) if lists.available else None

            sources = Sources(
                store=store, blobs=open_blobs(settings.blob_url), settings=settings, now=now,
                checkpoint=checkpoint,
            )  # fmt: skip
            return await examine(sources)
    except EventStoreUnavailable as error:
        return report_of(now, [log_away(settings, error)])


def _show(report: HealthReport) -> None:
    from rich.markup import escape

    console = output.console()
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        console.print(f"{_MARKS[check.status]} {check.name:<{width}}  {escape(check.summary)}")
        for problem in check.problems:
            console.print(f"    [bold]{escape(problem.what)}[/]")
            console.print(f"    [dim]→[/] {escape(output.as_called(problem.action))}")
    console.print(_WORDS[report.status])
