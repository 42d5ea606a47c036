"""What people may ask of the models, the same from the command line and from the admin API.

Appends ``model.*`` to the event log; the placement duty and the workers act on it. What must hold
across models (a name is no other model's alias, an adapter has a base) is checked against the whole
registry first; two rivals in the same moment are ordered by the log, see `model_registry`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from vllm_batch import fleet, ids, model_registry
from vllm_batch.aggregates import model as rules
from vllm_batch.aggregates.model import Model, Order, Prices
from vllm_batch.errors import InvalidInput, NotFound, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events.model import (
    ModelAliased,
    ModelLoadRequested,
    ModelPriced,
    ModelRegistered,
    ModelRetired,
    ModelUnloadRequested,
)
from vllm_batch.ids import ModelKey
from vllm_batch.messaging import subjects
from vllm_batch.model_check import check_engine_args, check_name, check_source
from vllm_batch.model_registry import ModelRegistry


class Registration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody wants registered. None: as it was, when it is registered again."""

    name: str
    source: str
    base: str | None = None
    engine_args: list[str] = []
    aliases: list[str] | None = None
    input_price_per_million: float | None = None
    output_price_per_million: float | None = None
    training_run: str | None = None


async def find(store: EventStore, name_or_alias: str) -> Model:
    """Return the registered model that is meant.

    Raises:
        NotFound: nobody registered such a one, or it is retired.
    """
    return _find(await model_registry.load(store), name_or_alias)


async def register(
    store: EventStore, wanted: Registration, *, requested_by: str, force: bool = False
) -> Model:
    """Register a model, or replace what it is made of. ``force``: take aliases from other models.

    Raises:
        InvalidInput: a name or an engine argument is not allowed.
        NotFound: its base is neither registered nor served.
        Rejected: a name or an alias is another model's, or its base cannot be one.
    """
    check_name(wanted.name, param="name")
    check_source(wanted.source)
    check_engine_args(wanted.engine_args)
    registry = await model_registry.load(store)
    base = await _base_of(store, registry, wanted)
    if registry.resolve(wanted.name) not in {None, wanted.name}:
        raise Rejected(
            f"{wanted.name!r} is an alias of {registry.resolve(wanted.name)}; take it away first "
            f"or choose another name"
        )
    before = registry.find(wanted.name)
    aliases = wanted.aliases
    if aliases is None:
        aliases = before.aliases if before else []
    await _check_aliases(store, registry, wanted.name, aliases, force=force)
    prices = _prices(before, wanted.input_price_per_million, wanted.output_price_per_million)
    event = ModelRegistered(
        model_key=ids.model_key(wanted.name),
        name=wanted.name,
        source=wanted.source,
        base=base,
        engine_args=wanted.engine_args,
        aliases=list(dict.fromkeys(aliases)),
        input_price_per_million=prices.input_per_million,
        output_price_per_million=prices.output_per_million,
        training_run=wanted.training_run,
        requested_by=requested_by,
    )
    model = await _append(store, event)
    await _take_from_others(store, registry, model, requested_by)
    return model


async def alias(
    store: EventStore,
    name: str,
    *,
    add: Collection[str] = (),
    remove: Collection[str] = (),
    requested_by: str,
    force: bool = False,
) -> Model:
    """Give a model other names, or take some away; ``force``: also from other models.

    Raises:
        NotFound: no such model, or none of its aliases has a name that is to be removed.
        InvalidInput: an alias is no good name.
        Rejected: an alias is another model's.
    """
    registry = await model_registry.load(store)
    before = _find(registry, name)
    if unknown := [one for one in remove if one not in before.aliases]:
        raise NotFound(f"{unknown[0]!r} is no alias of {before.name}")
    await _check_aliases(store, registry, before.name, add, force=force)
    kept = [one for one in before.aliases if one not in remove]
    event = ModelAliased(
        model_key=before.key, aliases=list(dict.fromkeys((*kept, *add))), requested_by=requested_by
    )
    model = await _append(store, event)
    await _take_from_others(store, registry, model, requested_by)
    return model


async def price(
    store: EventStore,
    name: str,
    *,
    input_per_million: float | None,
    output_per_million: float | None,
    requested_by: str,
) -> Model:
    """Say what a million tokens cost from now on; None: as before.

    Raises:
        NotFound: no such model.
        AlreadyDone: it has these prices.
    """
    model = await find(store, name)
    prices = _prices(model, input_per_million, output_per_million)
    event = ModelPriced(
        model_key=model.key,
        input_price_per_million=prices.input_per_million,
        output_price_per_million=prices.output_per_million,
        requested_by=requested_by,
    )
    return await _append(store, event)


async def load(
    store: EventStore, name: str, *, worker: str | None = None, requested_by: str
) -> Model:
    """Ask that a model be served whatever its backlog, by some worker or by this one.

    Raises:
        NotFound: no such model or worker.
        AlreadyDone: somebody asked for it already.
    """
    key, on = await _key_and_worker(store, name, worker)
    return await _append(
        store, ModelLoadRequested(model_key=key, worker=on, requested_by=requested_by)
    )


async def unload(
    store: EventStore, name: str, *, worker: str | None = None, requested_by: str
) -> Model:
    """Take a request to load back: the model is served no longer than its backlog asks for.

    Raises:
        NotFound: no such model or worker.
        AlreadyDone: nobody asked for it to be loaded.
    """
    key, on = await _key_and_worker(store, name, worker)
    return await _append(
        store, ModelUnloadRequested(model_key=key, worker=on, requested_by=requested_by)
    )


async def retire(store: EventStore, name: str, *, requested_by: str) -> Model:
    """Let a model be asked for no more; its history stays.

    Raises:
        NotFound: no such model.
        Rejected: adapters of it are registered.
    """
    registry = await model_registry.load(store)
    model = _find(registry, name)
    if adapters := _adapters_of(registry, model.name):
        raise Rejected(f"{model.name} is the base of {', '.join(adapters)}: remove them first")
    return await _append(store, ModelRetired(model_key=model.key, requested_by=requested_by))


def _find(registry: ModelRegistry, name_or_alias: str) -> Model:
    name = registry.resolve(name_or_alias)
    model = registry.find(name) if name is not None else None
    if model is None:
        raise NotFound(
            f"there is no registered model {name_or_alias!r}; `vllm-batch model list` has them"
        )
    return model


def _prices(before: Model | None, input_now: float | None, output_now: float | None) -> Prices:
    """Return the prices with those replaced that are given.

    Raises:
        InvalidInput: one is negative or no number.
    """
    for value, param in (
        (input_now, "input_price_per_million"),
        (output_now, "output_price_per_million"),
    ):
        if value is not None and not 0 <= value < math.inf:
            raise InvalidInput("a price is a number from 0 on", param=param)
    known = before.prices if before else Prices()
    return Prices(
        known.input_per_million if input_now is None else input_now,
        known.output_per_million if output_now is None else output_now,
    )


async def _append(store: EventStore, order: Order) -> Model:
    _, model = await append_decided(
        store,
        subjects.aggregate("model", order.model_key),
        rules.evolve,
        lambda state: rules.decide(state, order),
    )
    return model


async def _key_and_worker(
    store: EventStore, name: str, worker: str | None
) -> tuple[ModelKey, str | None]:
    key = (await find(store, name)).key
    if worker is None:
        return key, None
    found = (await fleet.load(store)).find(worker)
    if found is None:
        raise NotFound(f"there is no worker {worker!r}; `vllm-batch worker status` lists them")
    return key, found.name  # its name outlives its processes


def _adapters_of(registry: ModelRegistry, name: str) -> list[str]:
    return [one.name for one in registry.all() if one.base == name]


async def _base_of(store: EventStore, registry: ModelRegistry, wanted: Registration) -> str | None:
    if wanted.base is None:
        return None
    base = registry.resolve(wanted.base)
    if wanted.name in {wanted.base, base}:
        raise Rejected(f"{wanted.name} cannot be an adapter of itself: name another model as base")
    if adapters := _adapters_of(registry, wanted.name):
        raise Rejected(
            f"{wanted.name} is the base of {', '.join(adapters)} and cannot be an adapter as well: "
            "remove them first"
        )
    if base is None and (await fleet.load(store)).serving(wanted.base):
        return wanted.base
    if base is None:
        raise NotFound(f"the base {wanted.base!r} is neither registered nor served; add it first")
    known = registry.find(base)
    if known is not None and known.base is not None:
        raise Rejected(f"{base} is itself an adapter: name a base model")
    return base


async def _check_aliases(
    store: EventStore, registry: ModelRegistry, name: str, aliases: Collection[str], *, force: bool
) -> None:
    workers = await fleet.load(store) if aliases else None
    for one in aliases:
        check_name(one, param="aliases")
        if registry.resolve(one) == one or one == name:
            raise Rejected(f"{one!r} is a model's own name and cannot be an alias")
        if workers is not None and workers.serving(one):
            raise Rejected(f"{one!r} is the name of a model that a worker serves")
        owner = registry.resolve(one)
        if owner not in {None, name} and not force:
            raise Rejected(f"{one!r} is an alias of {owner}; force moves it")


async def _take_from_others(
    store: EventStore, registry: ModelRegistry, model: Model, requested_by: str
) -> None:
    """Take moved aliases out of the lists they were in. The log has already decided who is meant;
    this keeps an alias from going back when its new owner gives it up."""
    for other in registry.all():
        kept = [one for one in other.aliases if one not in model.aliases]
        if other.name != model.name and kept != other.aliases:
            event = ModelAliased(model_key=other.key, aliases=kept, requested_by=requested_by)
            await _append(store, event)
