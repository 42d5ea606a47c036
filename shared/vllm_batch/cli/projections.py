"""``vllm-batch projections``: make the read models anew, prove that they match the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import ProjectionUnavailable

if TYPE_CHECKING:
    from vllm_batch.event_store import EventStore
    from vllm_batch.projections.rebuild import Progress, Standing, Verification
    from vllm_batch.settings import Settings

T = TypeVar("T")

app = typer.Typer(
    help="The read models in Postgres: disposable, made anew from the event log.",
    no_args_is_help=True,
)


@app.command()
def rebuild(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Drop the read models and replay the event log. Batches go on running meanwhile."""
    from vllm_batch.projections import rebuild as rebuilding

    seq = _run(home, "replaying", rebuilding.rebuild)
    if as_json:
        output.print_json({"seq": seq})
    else:
        output.console().print(f"rebuilt from {seq} events")


@app.command()
def verify(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Replay the event log beside the read models and compare. Exit code 1 if they differ."""
    from vllm_batch.projections import rebuild as rebuilding

    found = _run(home, "replaying", rebuilding.verify)
    if as_json:
        output.print_json(_as_data(found))
    else:
        _print(found)
    if not found.identical:
        raise typer.Exit(output.ExitCode.FAILED)


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how far the read models are behind the event log, and how many rows they hold."""
    from vllm_batch.projections import rebuild as rebuilding

    async def ask(store: EventStore, settings: Settings, *, progress: Progress) -> Standing:
        found = await rebuilding.standing(store, settings)
        progress(found.seq or 0, found.log_ends_at)
        return found

    found = _run(home, "counting", ask)
    behind = None if found.seq is None else found.log_ends_at - found.seq
    if as_json:
        output.print_json(
            {
                "schema": found.schema, "seq": found.seq, "log_ends_at": found.log_ends_at,
                "behind": behind, "same_log": found.same_log, "rows": found.rows,
            }
        )  # fmt: skip
        return
    console = output.console()
    if found.seq is None:
        console.print(f"the schema {found.schema} is not there yet; an orchestrator fills it")
        return
    console.print(f"at event {found.seq} of {found.log_ends_at} ({behind} behind)")
    if not found.same_log:
        console.print("[bold red]filled from another event log[/]: vllm-batch projections rebuild")
    for name, rows in found.rows.items():
        console.print(f"  {name:<10} {rows:>10} rows")


def _run(home: HomeOption, what: str, deed: Callable[..., Awaitable[T]]) -> T:
    """Run ``deed`` with the event log at hand and its progress on the terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.event_store import jetstream
    from vllm_batch.postgres.connection import AWAY

    settings = settings_of(home)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("events"), TimeElapsedColumn(),
    )  # fmt: skip

    async def main() -> T:
        with Progress(*columns, console=output.console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def progress(seq: int, target: int) -> None:
                bar.update(task, completed=min(seq, target), total=target)

            async with jetstream.connect(settings, source="cli") as store:
                return await deed(store, settings, progress=progress)

    try:
        return asyncio.run(main())
    except AWAY as error:
        raise ProjectionUnavailable(f"Postgres does not answer: {error}") from error


def _as_data(found: Verification) -> dict[str, object]:
    return {
        "identical": found.identical,
        "seq": found.seq,
        "tables": {
            table.table: {
                "identical": table.identical,
                "rows": table.live.rows,
                "rows_replayed": table.replayed.rows,
                "hash": table.live.hash,
                "hash_replayed": table.replayed.hash,
            }
            for table in found.tables
        },
    }


def _print(found: Verification) -> None:
    console = output.console()
    for table in found.tables:
        mark = "[green]identical[/]" if table.identical else "[bold red]DIFFERENT[/]"
        rows = f"{table.live.rows} rows"
        if table.live.rows != table.replayed.rows:
            rows += f", {table.replayed.rows} by the log"
        console.print(f"{table.table:<10} {mark}  {rows}")
    if found.identical:
        console.print(f"the read models are what the log says, up to event {found.seq}")
    else:
        console.print("the read models differ from the log: vllm-batch projections rebuild")
