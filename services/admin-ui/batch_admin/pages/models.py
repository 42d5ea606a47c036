"""Models: what is registered and served and where; loading, aliases, prices, and new ones."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from nicegui import ui

from batch_admin import dialogs, show
from batch_admin.keyed import Boxes
from batch_admin.shell import Page, heading, notice
from batch_admin.view import View
from batch_admin.widgets import Facts
from vllm_batch import model_fit, model_listing, model_orders
from vllm_batch.errors import BatchError
from vllm_batch.events import Recorded
from vllm_batch.model_check import arguments_in
from vllm_batch.model_fit import Examination
from vllm_batch.model_listing import ModelStatus
from vllm_batch.model_orders import Registration


async def build(view: View) -> None:
    """Show a card per model; they follow the events of models and workers."""
    with ui.row().classes("w-full items-center justify-between"):
        heading("Models")
        if view.may("operator"):
            ui.button("Add model", icon="add", on_click=lambda: _add(view)).props(
                "unelevated no-caps"
            )
    grid = ui.element("div").classes("cards")
    empty = ui.column().classes("w-full")
    with empty:
        notice("model_training", "No models", 'Add one with "Add model", or start a worker.')
    cards: Boxes[str, ModelStatus] = Boxes(grid, lambda model: _card(view, model), classes="")

    async def refresh(_: list[Recorded]) -> None:
        found = model_listing.listed(view.live.models, view.live.fleet)
        cards.sync({model.name: model for model in found})
        empty.set_visibility(not found)

    await refresh([])
    view.refresh_on({"model", "worker"}, refresh)


def _card(view: View, model: ModelStatus) -> None:
    with show.named(ui.element("section").classes("panel h-full"), f"model {model.name}"):
        with ui.row().classes("w-full justify-between items-center no-wrap"):
            ui.label(model.name).classes("section-title ellipsis").props(
                "role=heading aria-level=2"
            ).tooltip(model.name)
            show.state(model.status)
        if model.status == "loading":
            bar = ui.linear_progress(show_value=False).props("indeterminate")
            show.named(bar, f"{model.name} is loading")
        Facts(_facts(model))
        if model.registered and view.may("operator"):
            with ui.row().classes("gap-1"):
                _actions(view, model)


def _facts(model: ModelStatus) -> list[tuple[str, str]]:
    facts = [("Source", model.source or "a worker's own configuration")]
    if model.base:
        facts.append(("Adapter of", model.base))
    if model.training_run:
        facts.append(("Trained in", model.training_run))
    if model.adapters:
        facts.append(("Adapters", ", ".join(model.adapters)))
    facts.append(("Aliases", ", ".join(model.aliases) or "none"))
    if model.engine_args:
        facts.append(("Engine", shlex.join(model.engine_args)))
    facts.append(("Price", price_of(model)))
    if model.load_requested:
        facts.append(("Asked for", "on " + (", ".join(model.load_requested_on) or "any worker")))
    return facts + [
        (one.worker, one.status + (f": {one.reason}" if one.reason else ""))
        for one in model.workers
    ]


def price_of(model: ModelStatus) -> str:
    """Return a model's prices as people read them."""
    given = (model.input_price_per_million, model.output_price_per_million)
    if given == (None, None):
        return "not set"
    tokens_in, tokens_out = ("-" if price is None else f"{price:g}" for price in given)
    return f"{tokens_in} in, {tokens_out} out, per million tokens"


def _actions(view: View, model: ModelStatus) -> None:
    _button("Load", lambda: _load(view, model))
    if model.load_requested:
        _button("Unload", lambda: _unload(view, model))
    _button("Aliases", lambda: _change_aliases(view, model))
    _button("Price", lambda: change_price(view, model))
    _button("Retire", lambda: _retire(view, model))


def _button(label: str, deed: Callable[[], object]) -> None:
    ui.button(label, on_click=deed).props("flat dense no-caps")


async def _load(view: View, model: ModelStatus) -> None:
    anyone = "any worker"
    workers = [name.newest.name for name in view.live.fleet.names.values()
               if name.newest.ended_at is None]  # fmt: skip

    async def deed() -> str:
        on = None if worker.value == anyone else worker.value
        await model_orders.load(
            view.services.store, model.name, worker=on, requested_by=view.user.name
        )
        return f"{model.name} was asked for"

    with dialogs.form(
        f"Load {model.name}",
        "It is served whatever its backlog, until it is unloaded here.",
        do="Load",
        deed=lambda: view.act("load a model", model.name, deed),
    ):
        worker = ui.select([anyone, *sorted(workers)], value=anyone, label="By").classes("w-full")


async def _unload(view: View, model: ModelStatus) -> None:
    async def deed() -> str:
        await model_orders.unload(view.services.store, model.name, requested_by=view.user.name)
        return f"{model.name} is served no longer than its backlog asks for"

    await view.act("unload a model", model.name, deed)


async def _change_aliases(view: View, model: ModelStatus) -> None:
    async def deed() -> str:
        wanted = set(_split(names.value))
        await model_orders.alias(
            view.services.store,
            model.name,
            add=sorted(wanted - set(model.aliases)),
            remove=sorted(set(model.aliases) - wanted),
            requested_by=view.user.name,
            force=take.value,
        )
        return f"{model.name}: aliases changed"

    with dialogs.form(
        f"Aliases of {model.name}",
        "Other names that clients may ask for, separated by commas.",
        do="Save",
        deed=lambda: view.act("change aliases", model.name, deed),
    ):
        names = ui.input("Aliases", value=", ".join(model.aliases)).classes("w-full")
        take = ui.checkbox("Take them from other models")


async def change_price(view: View, model: ModelStatus) -> None:
    """Ask for a model's prices and record them."""

    async def deed() -> str:
        await model_orders.price(
            view.services.store,
            model.name,
            input_per_million=tokens_in.value,
            output_per_million=tokens_out.value,
            requested_by=view.user.name,
        )
        return f"{model.name} has a new price"

    with dialogs.form(
        f"Price of {model.name}",
        "Per million tokens, from now on; what ran before keeps its price.",
        do="Save",
        deed=lambda: view.act("price a model", model.name, deed),
    ):
        tokens_in = ui.number("Input", value=model.input_price_per_million, min=0, step=0.01)
        tokens_out = ui.number("Output", value=model.output_price_per_million, min=0, step=0.01)


async def _retire(view: View, model: ModelStatus) -> None:
    async def deed() -> str:
        await model_orders.retire(view.services.store, model.name, requested_by=view.user.name)
        return f"{model.name} is retired"

    effect = "Nobody may ask for it any more; its aliases are free. Its history stays."
    if await dialogs.confirmed(f"Retire {model.name}?", effect, do="Retire"):
        await view.act("retire a model", model.name, deed)


async def _add(view: View) -> None:
    """Ask for a model, show what it needs before anything is loaded, and register it."""

    def wanted() -> Registration:
        return Registration(
            name=name.value.strip(),
            source=source.value.strip(),
            base=base.value or None,
            engine_args=arguments_in(engine_args.value),
            aliases=_split(aliases.value),
        )

    async def estimate() -> None:
        needs.clear()
        with needs:
            try:
                _show_needs(await _examine(view, wanted()))
            except BatchError as error:
                ui.label(str(error)).style("color:var(--bad)")

    async def deed() -> str:
        asked = wanted()
        if not unchecked.value:
            (await _examine(view, asked)).require_fit()
        await model_orders.register(view.services.store, asked, requested_by=view.user.name)
        return f"{asked.name} is registered; it is loaded when work comes or somebody asks"

    with dialogs.form(
        "Add model",
        "A model that workers load when they are asked for it, or an adapter of one.",
        do="Add",
        deed=lambda: view.act("register a model", name.value, deed),
    ):
        name = ui.input("Name").classes("w-full")
        source = ui.input(
            "Source", placeholder="Hugging Face id, folder on the workers, or blob:…"
        ).classes("w-full")
        listed = model_listing.listed(view.live.models, view.live.fleet)
        bases = [one.name for one in listed if one.base is None]
        base = ui.select(
            {"": "none: a whole model", **{one: one for one in bases}}, value="",
            label="Adapter of",
        ).classes("w-full")  # fmt: skip
        aliases = ui.input("Aliases", placeholder="separated by commas").classes("w-full")
        engine_args = ui.input("Engine arguments", placeholder="--max-model-len 4096").classes(
            "w-full"
        )
        ui.button("Estimate memory", icon="straighten", on_click=estimate).props("flat no-caps")
        needs = ui.column().classes("w-full gap-1")
        unchecked = ui.checkbox("Register without looking at source and memory")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


async def _examine(view: View, asked: Registration) -> Examination:
    services = view.services
    return await model_fit.examine(
        services.store, services.client, asked.source, base=asked.base,
        engine_args=asked.engine_args, settings=services.settings,
    )  # fmt: skip


def _show_needs(found: Examination) -> None:
    parts = (
        ("Weights", found.weight_bytes), ("KV cache", found.kv_cache_bytes),
        ("Overhead", found.overhead_bytes), ("Together", found.total_bytes),
    )  # fmt: skip
    Facts([(label, show.size(count)) for label, count in parts if count is not None])
    for place in found.places:
        ui.label(place.verdict).style(
            f"color:var(--{'good' if place.sequences_at_once else 'bad'})"
        )
    if found.total_bytes is not None and not found.places:
        ui.label("No worker says how much memory it has.").classes("dim")
    for warning in found.warnings:
        ui.label(warning).style("color:var(--warn)")


PAGE = Page(path="/models", title="Models", build=build, icon="hub")
