"""``vllm-batch model``: register models, say where they are served, name and price them.

Works on the event log itself, wherever it is; the API need not run.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import AlreadyDone, BatchError
from vllm_batch.model_check import arguments_in

if TYPE_CHECKING:
    from vllm_batch.event_store.jetstream import JetStreamEventStore
    from vllm_batch.model_fit import Examination
    from vllm_batch.model_listing import ModelStatus
    from vllm_batch.settings import Settings

Result = TypeVar("Result")

WAIT_SECONDS = 900.0

app = typer.Typer(
    help="Models: add, list, show, load, unload, alias, price, estimate, remove.",
    no_args_is_help=True,
)


def _names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names and aliases that complete what was typed; none where nothing runs."""
    try:
        found = _with_store(context.params.get("home"), lambda store, _: _all(store))
    except (BatchError, OSError, TimeoutError):
        return []
    names = [name for model in found for name in (model.name, *model.aliases)]
    return [name for name in names if name.startswith(incomplete)]


NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The model's name or an alias.", autocompletion=_names),
]
BaseOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="It is a LoRA adapter of this model.", autocompletion=_names),
]
EngineArgsOption = Annotated[
    str, typer.Option(help="Arguments for vLLM's server, as on a command line, in quotes.")
]
SourceArgument = Annotated[
    str, typer.Argument(help="A Hugging Face id such as org/model, or a local folder.")
]
WorkerOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="On this worker; else on any.")
]
InputPriceOption = Annotated[
    float | None, typer.Option("--input", min=0, help="Price of a million input tokens.")
]
OutputPriceOption = Annotated[
    float | None, typer.Option("--output", min=0, help="Price of a million output tokens.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Take aliases away from other models.")]


@app.command()
def add(
    source: SourceArgument,
    name: Annotated[
        str | None, typer.Option(help="What clients ask for; default: the source's last part.")
    ] = None,
    base: BaseOption = None,
    engine_args: EngineArgsOption = "",
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name for it; may be given several times.")
    ] = None,
    input_price: InputPriceOption = None,
    output_price: OutputPriceOption = None,
    check: Annotated[
        bool, typer.Option(help="First look whether it is there and fits the workers' memory.")
    ] = True,
    force: ForceOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a model or a LoRA adapter. Again: replace what it is made of; aliases and prices
    that are not given stay."""
    from vllm_batch import model_listing, model_orders
    from vllm_batch.model_orders import Registration

    wanted = Registration(
        name=name or _last_part(source), source=_absolute(source), base=base,
        engine_args=arguments_in(engine_args), aliases=alias,
        input_price_per_million=input_price, output_price_per_million=output_price,
    )  # fmt: skip

    async def ask(
        store: JetStreamEventStore, settings: Settings
    ) -> tuple[Examination | None, ModelStatus]:
        found = None
        if check:
            found = await _examine(store, settings, wanted.source, base, wanted.engine_args)
            found.require_fit()
        model = await model_orders.register(store, wanted, requested_by=_who(), force=force)
        return found, await model_listing.model(store, model.name)

    found, model = _with_store(home, ask)
    if as_json:
        output.print_json(msgspec.to_builtins({"model": model, "examination": found}))
        return
    if found is not None:
        _print_examination(found)
    print(f"registered {model.name}")


@app.command()
def estimate(
    source: SourceArgument,
    base: BaseOption = None,
    engine_args: EngineArgsOption = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how much memory a model needs and on which workers it fits. Exit code 1: on none."""
    found = _with_store(
        home,
        lambda store, settings: _examine(
            store, settings, _absolute(source), base, arguments_in(engine_args)
        ),
    )
    if as_json:
        output.print_json(msgspec.to_builtins(found))
    else:
        _print_examination(found)
    if found.too_large:
        raise typer.Exit(output.ExitCode.FAILED)


@app.command(name="list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the models: registered ones, and what workers serve by their own configuration."""
    from vllm_batch.cli import model_table

    models = _with_store(home, lambda store, _: _all(store))
    if as_json:
        output.print_json(msgspec.to_builtins(models))
    else:
        model_table.show_all(models)


@app.command()
def show(name: NameArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show a model: what it is made of, its lineage, prices, and the workers that have it."""
    from vllm_batch import model_listing

    _show(_with_store(home, lambda store, _: model_listing.model(store, name)), as_json)


@app.command()
def load(
    name: NameArgument,
    worker: WorkerOption = None,
    wait: Annotated[
        bool, typer.Option(help="Wait until a worker serves it, and show how far it is.")
    ] = True,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", min=1, help="Longest wait, in seconds.")
    ] = WAIT_SECONDS,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a model served whatever its backlog. Exit code 1: a worker could not load it, and
    says why; the request stands, `unload` takes it back."""
    from vllm_batch import model_loading

    def progress(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    async def ask(store: JetStreamEventStore, _: Settings) -> ModelStatus:
        return await model_loading.load(
            store, name, worker=worker, requested_by=_who(), on_progress=progress,
            wait_seconds=timeout_seconds if wait else None,
        )  # fmt: skip

    model = _with_store(home, ask)
    if as_json:
        output.print_json(msgspec.to_builtins(model))
    if model.status == "failed":
        raise typer.Exit(output.ExitCode.FAILED)


@app.command()
def unload(
    name: NameArgument,
    worker: WorkerOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a request to load back: the model stays only while batches need it."""
    from vllm_batch import model_orders

    _change(
        home, name, as_json,
        lambda store: model_orders.unload(store, name, worker=worker, requested_by=_who()),
        f"{name} is loaded no longer than its backlog needs",
    )  # fmt: skip


@app.command()
def alias(
    name: NameArgument,
    aliases: Annotated[
        list[str] | None, typer.Argument(metavar="[ALIAS]...", help="Other names for it.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="Take this one away; may be given several times.")
    ] = None,
    force: ForceOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model other names, or take some away. Requests by an alias go to its model."""
    from vllm_batch import model_orders

    if not aliases and not remove:
        raise typer.BadParameter("name an alias to give, or one to --remove")
    _change(
        home, name, as_json,
        lambda store: model_orders.alias(
            store, name, add=aliases or (), remove=remove or (), force=force, requested_by=_who()
        ),
        f"{name} has other names now",
    )  # fmt: skip


@app.command()
def price(
    name: NameArgument,
    input_price: InputPriceOption = None,
    output_price: OutputPriceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a million tokens cost from now on; what ran before keeps its price."""
    from vllm_batch import model_orders

    if input_price is None and output_price is None:
        raise typer.BadParameter("give --input, --output or both")
    _change(
        home, name, as_json,
        lambda store: model_orders.price(
            store, name, input_per_million=input_price, output_per_million=output_price,
            requested_by=_who(),
        ),
        f"{name} has new prices",
    )  # fmt: skip


@app.command()
def remove(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a model be asked for no more; batches of it that run are finished."""
    from vllm_batch import model_orders

    if not yes:
        typer.confirm(f"Remove {name} and its aliases?", abort=True)
    _change(
        home, name, as_json,
        lambda store: model_orders.retire(store, name, requested_by=_who()),
        f"removed {name}",
    )  # fmt: skip


async def _all(store: JetStreamEventStore) -> list[ModelStatus]:
    from vllm_batch import model_listing

    return await model_listing.models(store)


async def _examine(
    store: JetStreamEventStore,
    settings: Settings,
    source: str,
    base: str | None,
    engine_args: list[str],
) -> Examination:
    from vllm_batch import model_fit

    return await model_fit.examine(
        store, store.connection.client, source, base=base, engine_args=engine_args,
        settings=settings,
    )  # fmt: skip


def _print_examination(found: Examination) -> None:
    for warning in found.warnings:
        output.warn(warning)
    if found.needs is not None:
        print(found.needs)
    for place in found.places:
        print(place.verdict)


def _change(
    home: Path | None,
    name: str,
    as_json: bool,
    deed: Callable[[JetStreamEventStore], Awaitable[object]],
    done: str,
) -> None:
    """Have something changed and say so; what is so already is no failure."""
    from vllm_batch import model_listing

    async def ask(store: JetStreamEventStore, _: Settings) -> tuple[str, ModelStatus]:
        model = await model_listing.model(store, name)
        try:
            await deed(store)
        except AlreadyDone as error:
            return str(error), model
        return done, await model_listing.model(store, model.name)

    said, model = _with_store(home, ask)
    if as_json:
        output.print_json(msgspec.to_builtins(model))
    else:
        print(said)


def _show(model: ModelStatus, as_json: bool) -> None:
    from vllm_batch.cli import model_table

    if as_json:
        output.print_json(msgspec.to_builtins(model))
    else:
        model_table.show_one(model)


def _last_part(source: str) -> str:
    return Path(source).expanduser().resolve().name if _is_folder(source) else Path(source).name


def _absolute(source: str) -> str:
    """Return a folder's full path, as workers start elsewhere; a hub id as it is."""
    return str(Path(source).expanduser().resolve()) if _is_folder(source) else source


def _is_folder(source: str) -> bool:
    from vllm_batch.model_source import is_local

    return is_local(source)


def _who() -> str:
    """Return who is asking, for the event: the user of the operating system."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return "cli:unknown"


def _with_store(
    home: Path | None, deed: Callable[[JetStreamEventStore, Settings], Awaitable[Result]]
) -> Result:
    from vllm_batch.cli.service_settings import settings_of

    settings = settings_of(home)

    async def main() -> Result:
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            return await deed(store, settings)

    return asyncio.run(main())
