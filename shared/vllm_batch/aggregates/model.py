"""The rules of a model of the registry. Pure.

    (none) ──register──► REGISTERED ──retire──► RETIRED
                          ▲  │  ▲                  │
                          └──┘  └─────register─────┘   (again: what it is made of is replaced)

A retired one is still loaded for the batches of it that run. While it is registered, people may
alias it, price it and ask for it to be loaded or unloaded; asking again forgets who failed to. What
workers report of it goes on beside that, per worker:

    (nothing) ─► loading ─► ready ─► (nothing)          unloaded
                    └─────────┴────► failed ─► loading

An alias belongs to no single aggregate: it means the model that was given it last, among those that
have it (`model_registry`). So two who take it at the same moment never leave it with both.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from vllm_batch.errors import AlreadyDone, NotFound, Rejected
from vllm_batch.events.base import Event
from vllm_batch.events.envelope import Recorded
from vllm_batch.events.model import (
    ModelAliased,
    ModelFailed,
    ModelLoading,
    ModelLoadRequested,
    ModelPriced,
    ModelReady,
    ModelRegistered,
    ModelRetired,
    ModelUnloaded,
    ModelUnloadRequested,
)
from vllm_batch.ids import ModelKey, WorkerId

Order = (
    ModelRegistered
    | ModelAliased
    | ModelPriced
    | ModelLoadRequested
    | ModelUnloadRequested
    | ModelRetired
)
"""What a person may ask for; the event is the command."""

Report = ModelLoading | ModelReady | ModelFailed | ModelUnloaded
"""What a worker may say."""


class Prices(msgspec.Struct, frozen=True):
    """What a million tokens cost; None: nobody has said."""

    input_per_million: float | None = None
    output_per_million: float | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it is. ``created_at``: when it was registered first. ``seq``: its last event;
    ``aliased_seq``: the one that gave it its aliases.

    ``wanted_anywhere``: by some worker, whichever; ``wanted_on``: by these, by name or id.
    The workers are those that said so of what it is made of now, and nothing else since; one that
    died could not take it back, so ask the fleet who lives. ``failed`` has each one's reason.
    """

    key: ModelKey
    name: str
    source: str
    created_at: datetime
    seq: int
    base: str | None = None
    engine_args: list[str] = []
    aliases: list[str] = []
    aliased_seq: int = 0
    prices: Prices = Prices()
    training_run: str | None = None
    wanted_anywhere: bool = False
    wanted_on: frozenset[str] = frozenset()
    loading_on: frozenset[WorkerId] = frozenset()
    ready_on: frozenset[WorkerId] = frozenset()
    failed: dict[WorkerId, str] = {}
    retired: bool = False

    @property
    def wanted(self) -> bool:
        """Whether somebody asked for it to be loaded and nobody for the opposite since."""
        return self.wanted_anywhere or bool(self.wanted_on)


_UNWANTED: dict[str, object] = {"wanted_anywhere": False, "wanted_on": frozenset()}


def evolve(state: Model | None, recorded: Recorded) -> Model:
    """Return the model after ``recorded``.

    Raises:
        Rejected: the event is none of a model's, or has no model before it.
    """
    event, seq = recorded.event, recorded.seq
    if isinstance(event, ModelRegistered):
        return _registered(state, event, recorded)
    if state is None:
        raise Rejected(f"{event.TYPE} belongs to no registered model")
    match event:
        case ModelLoading() | ModelReady() | ModelFailed() | ModelUnloaded():
            return _reported(state, event, seq)
        case ModelAliased(aliases=aliases):
            changes: dict[str, object] = {"aliases": aliases, "aliased_seq": seq}
        case ModelPriced():
            prices = Prices(event.input_price_per_million, event.output_price_per_million)
            changes = {"prices": prices}
        case ModelLoadRequested() | ModelUnloadRequested():
            changes = _wanted(state, event)
        case ModelRetired():
            changes = {"retired": True, "aliases": [], **_UNWANTED}
        case _:
            raise Rejected(f"{event.TYPE} is none of a model's")
    return msgspec.structs.replace(state, seq=seq, **changes)


def _registered(state: Model | None, event: ModelRegistered, recorded: Recorded) -> Model:
    seq = recorded.seq
    made_of: dict[str, object] = {
        "key": event.model_key, "name": event.name, "source": event.source, "base": event.base,
        "engine_args": event.engine_args, "aliases": event.aliases, "aliased_seq": seq,
        "prices": Prices(event.input_price_per_million, event.output_price_per_million),
        "training_run": event.training_run, "seq": seq, "retired": False,
    }  # fmt: skip
    if state is None:
        return Model(created_at=recorded.time, **made_of)  # type: ignore[arg-type]
    if (state.source, state.base, state.engine_args) != (
        event.source, event.base, event.engine_args,
    ):  # fmt: skip
        made_of |= {"loading_on": frozenset(), "ready_on": frozenset(), "failed": {}}
    return msgspec.structs.replace(state, **made_of)


def _wanted(state: Model, event: ModelLoadRequested | ModelUnloadRequested) -> dict[str, object]:
    load = isinstance(event, ModelLoadRequested)
    changes: dict[str, object] = {"failed": {}} if load else {}
    if event.worker is not None:
        others = state.wanted_on - {event.worker}
        return changes | {"wanted_on": others | {event.worker} if load else others}
    return changes | ({"wanted_anywhere": True} if load else _UNWANTED)


def _reported(state: Model, event: Report, seq: int) -> Model:
    worker = event.worker_id
    loading, ready = state.loading_on - {worker}, state.ready_on - {worker}
    failed = {one: reason for one, reason in state.failed.items() if one != worker}
    match event:
        case ModelLoading():
            loading |= {worker}
        case ModelReady():
            ready |= {worker}
        case ModelFailed(reason=reason):
            failed[worker] = reason
    return msgspec.structs.replace(
        state, seq=seq, loading_on=loading, ready_on=ready, failed=failed
    )


def decide(state: Model | None, order: Order) -> Event:
    """Return the event of what a person asked for.

    Raises:
        NotFound: no such model, or it is retired.
        AlreadyDone: it changes nothing.
    """
    if isinstance(order, ModelRegistered):
        return order
    if state is None or state.retired:
        name = state.name if state else order.model_key
        raise NotFound(f"there is no model {name!r}; `vllm-batch model list` has them")
    match order:
        case ModelLoadRequested(worker=worker):
            done = state.wanted_anywhere if worker is None else worker in state.wanted_on
            if done and not state.failed:  # asking again where it failed is asking for another try
                raise AlreadyDone(f"{state.name} is already to be loaded{_on(worker)}")
        case ModelUnloadRequested(worker=worker):
            done = not state.wanted if worker is None else worker not in state.wanted_on
            if done:
                raise AlreadyDone(
                    f"nobody asked for {state.name} to be loaded{_on(worker)}; it is served no "
                    "longer than its backlog needs"
                )
        case ModelPriced():
            prices = Prices(order.input_price_per_million, order.output_price_per_million)
            if prices == state.prices:
                raise AlreadyDone(f"{state.name} has these prices already")
    return order


def decide_report(state: Model | None, report: Report) -> Event:
    """Return the event of what a worker says.

    Raises:
        Rejected: nobody registered the model.
        AlreadyDone: the log has it so already.
    """
    if state is None:
        raise Rejected(f"{report.TYPE} of a model that nobody registered")
    worker = report.worker_id
    match report:
        case ModelLoading():
            done = worker in state.loading_on
        case ModelReady():
            done = worker in state.ready_on
        case ModelFailed(reason=reason):
            done = state.failed.get(worker) == reason
        case ModelUnloaded():
            done = worker not in state.ready_on | state.loading_on
    if done:
        raise AlreadyDone(f"{report.TYPE} of {state.name} by {report.worker_name} is known")
    return report


def _on(worker: str | None) -> str:
    return "" if worker is None else f" on {worker}"
