"""``vllm-batch training``: train a project's model, see what became of it, take it back.

Works on the event log itself; bridge and trainer act on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vllm_batch.cli import output
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from vllm_batch.aggregates.training import Run

Result = TypeVar("Result")
REQUESTED_BY = "cli"
EXPORT_SECONDS = 300.0
ProjectOption = Annotated[
    str, typer.Option("--project", help="The project's number in Label Studio.")
]

app = typer.Typer(
    help="Train a project's model on what was validated, and promote what is better.",
    no_args_is_help=True,
)


@app.command()
def start(project: ProjectOption, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Ask for a training run now."""
    from vllm_batch import training_runs

    run = _with_store(
        home, lambda store: training_runs.request(store, project, requested_by=REQUESTED_BY)
    )
    _print_run(run, as_json, f"asked for {run.run_id}; `vllm-batch training runs` follows it")


@app.command()
def runs(
    project: Annotated[str | None, typer.Option("--project", help="Only of this one.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs, oldest first, with the accuracy before and after."""
    from vllm_batch import training_runs

    folded = _with_store(home, training_runs.load)
    found = [
        _as_data(run)
        for run in folded.runs.values()
        if project is None or run.requested.project == project
    ]
    if as_json:
        output.print_json(found)
        return
    columns = ("id", "project", "trigger", "status", "step", "model", "before", "after", "why")
    print_rows(columns, ([_text(run[column]) for column in columns] for run in found))


@app.command()
def datasets(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the datasets that were exported; their parts are in the blob store."""
    import msgspec

    from vllm_batch import training_runs

    folded = _with_store(home, training_runs.load)
    found = [msgspec.structs.asdict(one) for one in folded.datasets.values()]
    if as_json:
        output.print_json(found)
        return
    columns = ("dataset_id", "project", "format", "train_examples", "validation_examples",
               "held_out", "train_blob")  # fmt: skip
    print_rows(columns, ([_text(one[column]) for column in columns] for one in found))


@app.command()
def export(
    project: ProjectOption,
    kind: Annotated[
        str, typer.Option("--format", help="sft, preference or classification.")
    ] = "sft",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write its files here too: JSONL; classification: CSV, Parquet."
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export what is validated now as a dataset; ground truth is never in it."""
    from typing import get_args

    from vllm_batch.events.training import DatasetFormat
    from vllm_batch.labeling.control import ExportDataset, send

    if kind not in get_args(DatasetFormat):
        raise typer.BadParameter(
            f"{kind!r} is none of {', '.join(get_args(DatasetFormat))}", param_hint="--format"
        )
    command = ExportDataset(project=project, format=kind)  # type: ignore[arg-type]
    made = _with_store(home, lambda store: send(store.connection.client, command, EXPORT_SECONDS))
    written: list[Path] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        written = asyncio.run(_download(home, made["train_blob"], folder))
    if as_json:
        output.print_json({**made, "files": [str(file) for file in written]})
        return
    print(
        f"{made['dataset_id']}: {made['train_examples']} + {made['validation_examples']} examples"
        f" in {made['train_blob']}, {made['held_out']} held out as ground truth"
    )
    for file in written:
        print(file)


@app.command()
def cancel(
    run: Annotated[str, typer.Argument(help="The run (run_…), as `training runs` lists it.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run that is not trained yet; its project may have another one then."""
    from vllm_batch import training_runs

    ended = _with_store(
        home, lambda store: training_runs.cancel(store, run, requested_by=REQUESTED_BY)
    )
    _print_run(ended, as_json, f"{ended.run_id} is cancelled")


@app.command()
def rollback(project: ProjectOption, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Let the version answer again that the newest promotion replaced."""
    from vllm_batch import training_runs

    run = _with_store(
        home, lambda store: training_runs.roll_back(store, project, requested_by=REQUESTED_BY)
    )
    assert run.promoted is not None  # noqa: S101 - what is rolled back was promoted
    _print_run(run, as_json, f"{run.promoted.replaced} answers again, not {run.promoted.model}")


async def _download(home: Path | None, train_blob: str, folder: Path) -> list[Path]:
    """Write every file that lies beside ``train_blob`` into ``folder``; return their paths.

    Raises:
        BlobError: one cannot be read.
    """
    from vllm_batch.blobs import open_blobs
    from vllm_batch.cli.service_settings import settings_of

    blobs, written = open_blobs(settings_of(home).blob_url), []
    async for key in blobs.list(train_blob.rpartition("/")[0] + "/"):
        file = folder / Path(key).name
        with file.open("wb") as out:
            async for piece in blobs.stream(key):
                out.write(piece)
        written.append(file)
    return sorted(written)


def _print_run(run: Run, as_json: bool, text: str) -> None:
    if as_json:
        output.print_json(_as_data(run))
    else:
        print(text)


def _as_data(run: Run) -> dict[str, Any]:
    measured, progress = run.evaluated, run.progress
    why = run.failed or run.rejected
    return {
        "id": run.run_id,
        "project": run.requested.project,
        "trigger": run.requested.trigger,
        "attempt": run.requested.attempt,
        "status": run.status.value,
        "dataset": run.prepared.dataset_id if run.prepared else None,
        "step": f"{progress.step}/{progress.steps}" if progress else None,
        "loss": progress.loss if progress else None,
        "model": measured.model if measured else None,
        "replaced": measured.replaced if measured else None,
        "before": measured.before if measured else None,
        "after": measured.after if measured else None,
        "why": why.reason if why else None,
    }


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _with_store(home: Path | None, deed: Callable[[Any], Awaitable[Result]]) -> Result:
    from vllm_batch.cli.service_settings import settings_of

    settings = settings_of(home)

    async def main() -> Result:
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            return await deed(store)

    return asyncio.run(main())
