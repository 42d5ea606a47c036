"""``vllm-batch worker``: look at the workers and manage them, wherever they run: all over NATS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import AlreadyDone

if TYPE_CHECKING:
    from rich.text import Text

    from vllm_batch.event_store.jetstream import JetStreamEventStore
    from vllm_batch.fleet import Fleet
    from vllm_batch.ids import WorkerId
    from vllm_batch.messaging.telemetry import LoggedLine
    from vllm_batch.worker_control import Command, Reply

Result = TypeVar("Result")

app = typer.Typer(help="Workers: status, restart, clear-gpu, logs, kill, clear.")

_LEVELS = ("debug", "info", "warning", "error", "critical")
_COLOURS = {"warning": "yellow", "error": "bold red", "critical": "bold red", "debug": "dim"}

WorkerArgument = Annotated[str, typer.Argument(metavar="NAME", help="The worker's name or id.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
def status(
    everybody: Annotated[
        bool, typer.Option("--all", help="Those that left on purpose, too.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every worker, its engine and GPU, and how much work waits for each model."""
    from vllm_batch import fleet_report
    from vllm_batch.cli import worker_table
    from vllm_batch.clock import SystemClock

    async def ask(
        store: JetStreamEventStore,
    ) -> tuple[list[fleet_report.WorkerReport], list[fleet_report.QueueReport]]:
        client, now = store.connection.client, SystemClock().now()
        return (
            await fleet_report.workers(store, client, now, gone=everybody),
            await fleet_report.queues(store),
        )

    workers, queues = _with_store(home, ask)
    if as_json:
        data = {"workers": workers, "queues": queues}
        output.print_json(msgspec.to_builtins(data))
        return
    worker_table.show(workers, queues)


@app.command()
def restart(
    name: WorkerArgument,
    now: Annotated[
        bool, typer.Option("--now", help="Do not let what runs finish; nothing finished is lost.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restart a worker: it finishes what runs, hands in, and starts anew."""
    from vllm_batch.worker_control import Restart

    _say(_order(home, name, Restart(requested_by=output.who(), now=now)), as_json)


@app.command()
def clear_gpu(
    name: WorkerArgument,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a worker's engine, kill what it left on the GPU (ours only), start it again."""
    from vllm_batch.worker_control import ClearGpu

    _confirm(f"Stop the engine of {name} and kill its leftovers on the GPU?", yes)
    _say(_order(home, name, ClearGpu(requested_by=output.who())), as_json)


@app.command()
def kill(
    name: WorkerArgument,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Kill a worker's engine at once (SIGKILL); the worker starts a new one and goes on."""
    from vllm_batch.worker_control import Kill

    _confirm(f"Kill the engine of {name} now? What it is computing is computed again.", yes)
    _say(_order(home, name, Kill(requested_by=output.who())), as_json)


@app.command()
def clear(name: WorkerArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say that a worker's crash loop is mended: the watchdog starts it again."""
    from vllm_batch import worker_orders

    async def ask(store: JetStreamEventStore) -> str:
        try:
            await worker_orders.clear(store, name, requested_by=output.who())
        except AlreadyDone as error:
            return str(error)
        return f"cleared {name}"

    said = _with_store(home, ask)
    if as_json:
        output.print_json({"worker": name, "message": said})
    else:
        print(said)


@app.command()
def logs(
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many lines back.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    level: Annotated[
        str, typer.Option(help="This level and worse: debug, info, warning, error, critical.")
    ] = "debug",
    worker: Annotated[str, typer.Option(help="One worker's, by name or id.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the workers and their engines log, wherever they run."""
    if level.lower() not in _LEVELS:
        raise typer.BadParameter(f"one of {', '.join(_LEVELS)}", param_hint="--level")
    wanted = frozenset(_LEVELS[_LEVELS.index(level.lower()) :])

    async def ask(store: JetStreamEventStore) -> None:
        from vllm_batch import fleet, tasks, worker_orders
        from vllm_batch.messaging import telemetry

        if worker:
            await worker_orders.find(store, worker)
        known, client = await fleet.load(store), store.connection.client
        workers = known.processes(worker) if worker else None
        found = await telemetry.tail(client, workers=workers, count=tail)
        for line in found.lines:
            _print_line(line, known, wanted, as_json)

        async def print_new() -> None:
            def of(worker_id: WorkerId) -> bool | None:
                return not worker or known.is_of(worker_id, worker)

            async for line in telemetry.follow(client, of=of, after=found.after):
                _print_line(line, known, wanted, as_json)

        if follow:
            await tasks.first_to_end(print_new(), fleet.follow(known, store))

    _with_store(home, ask)


def _print_line(logged: LoggedLine, known: Fleet, wanted: frozenset[str], as_json: bool) -> None:
    if logged.line.level not in wanted:
        return
    view = known.workers.get(logged.worker_id)
    name = view.name if view else logged.worker_id
    if as_json:
        data = {"worker": name, **msgspec.to_builtins(logged.line)}
        print(json.dumps(data, ensure_ascii=False), flush=True)
    else:
        output.console().print(_text_of(logged, name), soft_wrap=True)


def _text_of(logged: LoggedLine, name: str) -> Text:
    from rich.text import Text

    from vllm_batch.cli.events import CONTROL

    line = logged.line
    time = line.time.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    text = Text.assemble(
        (f"{time} ", "dim"),
        (f"{name} ", "bold"),
        (f"{line.level:<8} ", _COLOURS.get(line.level, "")),
        ("engine: " if line.source == "engine" else "", "dim"),
        line.message.translate(CONTROL),
    )
    for field, value in line.fields.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text.append(f" {field}=", style="dim")
        text.append(shown.translate(CONTROL))
    return text


def _order(home: Path | None, worker: str, command: Command) -> Reply:
    from vllm_batch import worker_orders

    return _with_store(
        home,
        lambda store: worker_orders.order(store, store.connection.client, worker, command),
    )


def _say(reply: Reply, as_json: bool) -> None:
    if as_json:
        output.print_json(msgspec.to_builtins(reply))
    elif reply.ok:
        print(reply.message)
        for name, value in reply.data.items():
            print(f"  {name}: {json.dumps(value, ensure_ascii=False)}")
    else:
        output.warn(reply.message)
    if not reply.ok:
        raise typer.Exit(output.ExitCode.FAILED)


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


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
