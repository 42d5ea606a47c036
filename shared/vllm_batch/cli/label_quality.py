"""``vllm-batch label accuracy|agreement|ground-truth``: how good annotations and models are."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import NotFound

if TYPE_CHECKING:
    from datetime import datetime

    from vllm_batch.event_store.jetstream import JetStreamEventStore
    from vllm_batch.events import LabelingAccuracyMeasured
    from vllm_batch.labeling.control import Command
    from vllm_batch.labeling.projects import ProjectView

Result = TypeVar("Result")

ProjectOption = Annotated[str, typer.Option("--project", help="The project's number there.")]
AnnotationArgument = Annotated[
    list[str], typer.Argument(metavar="ANNOTATION…", help="The annotations' numbers there.")
]

ground_truth = typer.Typer(
    help="Ground truth: mark, unmark, list. Models are measured by it, and never trained on it.",
    no_args_is_help=True,
)


def accuracy(
    project: ProjectOption,
    measure: Annotated[
        bool, typer.Option("--measure", help="Ask the model now; else only show the history.")
    ] = False,
    model: Annotated[str, typer.Option(help="This model or alias; else the project's.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how well models answer the tasks with ground truth, over time and by class."""
    from vllm_batch.events import LabelingAccuracyMeasured
    from vllm_batch.labeling import project_report
    from vllm_batch.labeling.control import MeasureAccuracy
    from vllm_batch.labeling.project_report import Measurement

    found: Sequence[LabelingAccuracyMeasured]
    if measure:
        command = MeasureAccuracy(project=project, model=model or None, requested_by=_who())
        found = [msgspec.convert(_ask(home, command), LabelingAccuracyMeasured)]
    else:
        found = project_report.history_of(_view(home, project), model).measured
    if as_json:
        output.print_json({"project": project, "measured": msgspec.to_builtins(found)})
        return
    print_rows(
        ("measured", "model", "tasks", "accuracy", "95 % interval", "macro F1", "kappa"),
        (
            (
                _time(one.measured_at) if isinstance(one, Measurement) else "now",
                one.model_version, str(one.tasks), _share(one.accuracy),
                f"{_share(one.interval_low)} to {_share(one.interval_high)}",
                _share(one.macro_f1), _share(one.kappa),
            )
            for one in found
        ),
    )  # fmt: skip
    if found:
        _print_classes(found[-1])


def agreement(project: ProjectOption, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how far the annotators agree: each two of them, and all."""
    from vllm_batch.labeling.agreement_report import AgreementReport
    from vllm_batch.labeling.control import ReportAgreement

    report = msgspec.convert(_ask(home, ReportAgreement(project=project)), AgreementReport)
    if as_json:
        output.print_json(msgspec.to_builtins(report))
        return
    print(
        f"{report.tasks} tasks with more than one annotator, mean likeness {_share(report.mean)}, "
        f"Krippendorff's alpha {_share(report.alpha)}"
    )
    print_rows(
        ("annotator", "annotator", "tasks", "mean likeness", "Cohen's kappa"),
        (
            (pair.one, pair.other, str(pair.tasks), _share(pair.mean), _share(pair.kappa))
            for pair in report.annotators
        ),
    )


@ground_truth.command(name="list")
def list_(project: ProjectOption, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the annotations that are ground truth."""
    from vllm_batch.labeling import project_report

    found = project_report.of_annotations(_view(home, project).ground_truth())
    if as_json:
        output.print_json(msgspec.to_builtins(found))
        return
    print_rows(
        ("annotation", "task", "annotator", "verdict", "since"),
        (
            (one.id, one.task, one.completed_by or "-", one.verdict or "-",
             _time(one.version))
            for one in found
        ),
    )  # fmt: skip


@ground_truth.command()
def mark(
    annotations: AnnotationArgument,
    project: ProjectOption,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mark annotations as ground truth, in Label Studio too."""
    _mark(home, project, annotations, as_json, ground_truth=True)


@ground_truth.command()
def unmark(
    annotations: AnnotationArgument,
    project: ProjectOption,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make annotations ground truth no longer."""
    _mark(home, project, annotations, as_json, ground_truth=False)


def _mark(
    home: Path | None, project: str, annotations: list[str], as_json: bool, *, ground_truth: bool
) -> None:
    from vllm_batch.labeling.control import MarkGroundTruth

    for one in annotations:
        if not (one.isascii() and one.isdigit()):
            raise typer.BadParameter("an annotation is a number", param_hint="ANNOTATION")
    done = [
        _ask(home, MarkGroundTruth(project=project, annotation=one, ground_truth=ground_truth))
        for one in annotations
    ]
    if as_json:
        output.print_json(done)
        return
    word = "is" if ground_truth else "is no longer"
    for one in annotations:
        print(f"annotation {one} {word} ground truth")


def _print_classes(measured: LabelingAccuracyMeasured) -> None:
    print(f"\n{measured.model_version}, by class:")
    print_rows(
        ("class", "precision", "recall", "F1", "true cases"),
        (
            (one.label, _share(one.precision), _share(one.recall), _share(one.f1), str(one.support))
            for one in measured.classes
        ),
    )
    if measured.confusion:
        print("\ntrue class by row, answered class by column:")
        print_rows(
            ("", *measured.labels),
            (
                (label, *map(str, row))
                for label, row in zip(measured.labels, measured.confusion, strict=True)
            ),
        )


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _who() -> str:
    """Return who is asking, for the event: the user of the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _view(home: Path | None, project: str) -> ProjectView:
    from vllm_batch.labeling import projects

    async def load(store: JetStreamEventStore) -> ProjectView:
        view = (await projects.load(store)).find(project)
        if view is None or view.project.deleted:
            raise NotFound(f"there is no labeling project {project}")
        return view

    return _with_store(home, load)


def _ask(home: Path | None, command: Command) -> dict[str, Any]:
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.labeling import control

    seconds = settings_of(home).label_measure_seconds
    return _with_store(home, lambda store: control.send(store.connection.client, command, seconds))


def _with_store(
    home: Path | None, deed: Callable[[JetStreamEventStore], Awaitable[Result]]
) -> Result:
    from vllm_batch.cli.service_settings import settings_of

    settings = settings_of(home)

    async def main() -> Result:
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            return await deed(store)

    return asyncio.run(main())
