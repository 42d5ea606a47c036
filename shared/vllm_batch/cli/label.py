"""``vllm-batch label``: Label Studio projects, and results pushed into them.

Commands append events; the bridge, which talks to Label Studio, acts on them and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import typer

from vllm_batch.cli import label_quality, output
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import BatchError, BridgeUnreachable

if TYPE_CHECKING:
    from vllm_batch.event_store import EventStore
    from vllm_batch.event_store.jetstream import JetStreamEventStore
    from vllm_batch.events import Event
    from vllm_batch.labeling.projects import ProjectView

Result = TypeVar("Result")
TemplateName = Literal["classification", "ner", "pairwise", "rating", "text"]

CONNECT_SECONDS = 20.0
ProjectOption = Annotated[str, typer.Option("--project", help="The project's number there.")]

app = typer.Typer(help="Label Studio: projects, and results as tasks.", no_args_is_help=True)
app.command()(label_quality.accuracy)
app.command()(label_quality.agreement)
app.add_typer(label_quality.ground_truth, name="ground-truth")


class PushFailed(BatchError):
    """The bridge could not push; the message is its own."""

    code = "push_failed"


class PushUnfinished(BatchError):
    """A push takes longer than somebody would wait."""

    code = "push_unfinished"
    retryable = True


@app.command()
def projects(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the labeling projects, what is done for them, and how far they are."""
    rows = [_as_data(view) for view in _with_store(home, _load)]
    if as_json:
        output.print_json(rows)
        return
    print_rows(
        ("project", "title", "template", "model", "tasks", "annotations", "validated", "flagged",
         "ground truth", "webhook"),
        ([str("-" if value is None else value) for value in row.values()] for row in rows),
    )  # fmt: skip


@app.command()
def configure(
    project: ProjectOption,
    model: Annotated[str, typer.Option(help="Model or alias whose predictions are shown.")],
    template: Annotated[
        str | None,
        typer.Option(
            help="What the project asks of annotators, refused if its label config asks otherwise: "
            f"{', '.join(get_args(TemplateName))}. Default: what the label config asks first."
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="What the model is asked, with a task's fields in braces.")
    ] = "",
    push_automatically: Annotated[
        bool, typer.Option(help="Push batches with this metadata.labeling_project by themselves.")
    ] = False,
    train_after: Annotated[
        int, typer.Option(min=0, help="Newly validated annotations that start a training; 0: none.")
    ] = 0,
    train_every: Annotated[
        int, typer.Option(min=0, help="Seconds after which a training starts; 0: never.")
    ] = 0,
    write_back: Annotated[
        bool, typer.Option(help="Write what validation says to the task's meta.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(help="Model that judges annotations as well.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is done for a project, all of it; the bridge then connects it to Label Studio.

    Running it again changes the settings; the webhook is made once.
    """
    from vllm_batch.events import LabelingProjectConfigured

    if template is not None and template not in get_args(TemplateName):
        raise typer.BadParameter(
            f"{template!r} is none of {', '.join(get_args(TemplateName))}",
            param_hint="--template",
        )
    _check_project(project)

    async def do(store: JetStreamEventStore) -> str | None:
        said = LabelingProjectConfigured(
            project=project, template=await _template(store, project, template), model=model,
            prompt=prompt, push_automatically=push_automatically, train_after=train_after,
            train_every_seconds=train_every, write_back=write_back, judge_model=judge,
            requested_by="cli",
        )  # fmt: skip
        return await _configure(store, said)

    connected = _with_store(home, do)
    if as_json:
        output.print_json({"project": project, "connected": connected is not None})
    elif connected is None:
        output.warn(
            f"project {project} is configured, but the bridge has not connected it yet; "
            "`vllm-batch logs labelstudio-bridge` says why"
        )
    else:
        print(f"project {project} is configured; Label Studio delivers to {connected}")


@app.command()
def push(
    source: Annotated[
        str,
        typer.Argument(
            help="A batch (batch_…), its output file, or an uploaded file (file-…) whose lines are "
            "results with the `body` of their request: custom_id, body, response."
        ),
    ],
    project: ProjectOption,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the end; 0: only ask.")
    ] = 600.0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make results tasks with predictions. Doing it again makes none twice."""
    from vllm_batch import ids
    from vllm_batch.events import LabelingPushRequested, LabelingTasksPushed

    _check_project(project)
    asked = LabelingPushRequested(
        project=project, push_id=ids.new("push_"), source=source, requested_by="cli"
    )
    end = _with_store(home, lambda store: _ask_and_wait(store, asked, wait))
    if end is None and wait:
        raise PushUnfinished(
            f"{asked.push_id} has not ended within {wait:g} s; it goes on, and "
            "`vllm-batch logs labelstudio-bridge` says what holds it up"
        )
    if end is None:
        found: dict[str, Any] = {"push": asked.push_id, "status": "requested"}
        text = f"asked for: {asked.push_id}"
    elif isinstance(end, LabelingTasksPushed):
        found = {
            "push": asked.push_id, "status": "pushed", "created": end.created, "known": end.known,
            "predictions": end.predictions, "skipped": end.skipped, "skipped_why": end.skipped_why,
        }  # fmt: skip
        text = (
            f"{end.created} tasks made with {end.predictions} predictions, {end.known} were there, "
            f"{end.skipped} lines skipped"
        )
        for why in [] if as_json else end.skipped_why:
            output.warn(why)
    else:
        raise PushFailed(end.reason)
    if as_json:
        output.print_json(found)
    else:
        print(text)


def _check_project(project: str) -> None:
    if not (project.isascii() and project.isdigit()):
        raise typer.BadParameter(
            "the number in the project's address in Label Studio", param_hint="--project"
        )


def _as_data(view: ProjectView) -> dict[str, Any]:
    project, configured = view.project, view.project.configured
    return {
        "project": project.project,
        "title": project.title,
        "template": configured.template if configured else None,
        "model": configured.model if configured else None,
        "tasks": len(project.tasks),
        "annotations": sum(1 for _ in view.present()),
        "validated": len(view.validated()),
        "flagged": len(view.flagged()),
        "ground_truth": len(view.ground_truth()),
        "webhook": project.connected.url if project.connected else None,
    }


async def _load(store: EventStore) -> list[ProjectView]:
    from vllm_batch.labeling import projects

    return (await projects.load(store)).all()


async def _template(store: JetStreamEventStore, project: str, wanted: str | None) -> Any:
    """Return the project's template; where the bridge cannot look, what is wanted is believed.

    Raises:
        NotFound: Label Studio has no such project.
        Rejected: its label config does not ask what is wanted.
    """
    from vllm_batch.labeling.control import FindTemplate, send

    command = FindTemplate(project=project, wanted=wanted)
    try:
        return (await send(store.connection.client, command, CONNECT_SECONDS))["template"]
    except BridgeUnreachable as error:
        output.warn(f"whether the label config fits could not be seen: {error}")
        return wanted or "classification"


async def _configure(store: EventStore, said: Event) -> str | None:
    """Append the event; return where Label Studio delivers to, once the bridge has seen to it."""
    from vllm_batch.aggregates import labeling
    from vllm_batch.event_store.protocol import append_decided
    from vllm_batch.events import LabelingProjectConnected
    from vllm_batch.messaging import subjects

    subject = subjects.of_aggregate(said)
    _, state = await append_decided(store, subject, labeling.evolve, lambda _: said)
    if state.connected is not None:
        return state.connected.url
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            async for batch in store.follow([subject], after=state.seq):
                for recorded in batch:
                    if isinstance(event := recorded.event, LabelingProjectConnected):
                        return event.url
    except TimeoutError:
        return None
    return None


async def _ask_and_wait(store: EventStore, asked: Event, seconds: float) -> Any:
    """Append the event; return how the push ended, None if not within ``seconds``."""
    from vllm_batch.aggregates.labeling import PushEnd
    from vllm_batch.messaging import subjects

    recorded = await store.append(asked, expected=0)
    try:
        async with asyncio.timeout(seconds):
            wanted = [subjects.of_aggregate(asked)]
            async for batch in store.follow(wanted, after=recorded.seq):
                for one in batch:
                    if isinstance(one.event, PushEnd):
                        return one.event
    except TimeoutError:
        return None
    return None


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
