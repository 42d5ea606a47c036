"""What people are shown of the models: what is registered, what is served, and where.

Reads the event log; writes nothing. The command line and the admin API show the same.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from vllm_batch import fleet, ids, model_registry
from vllm_batch.errors import NotFound
from vllm_batch.event_store import EventStore
from vllm_batch.fleet import FIXED_ENGINES, Fleet, WorkerView
from vllm_batch.ids import ModelKey
from vllm_batch.model_registry import ModelRegistry, ModelView

WorkerStatus = Literal["loading", "ready", "failed"]
Status = Literal["ready", "loading", "failed", "waiting", "idle", "retired"]


class ModelOnWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a worker that lives; ``reason``: why it failed."""

    worker: str
    status: WorkerStatus
    reason: str | None = None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model now.

    ``status``: ready, loading or failed on some worker, the best of them; waiting: somebody asked
    for it and no worker has begun; idle: it is loaded when work comes. ``registered`` is false for
    what a worker serves by its own configuration. Prices are per million tokens.
    """

    name: str
    model_key: ModelKey
    registered: bool
    status: Status
    source: str | None = None
    base: str | None = None
    adapters: list[str] = []
    training_run: str | None = None
    engine_args: list[str] = []
    aliases: list[str] = []
    input_price_per_million: float | None = None
    output_price_per_million: float | None = None
    load_requested: bool = False
    load_requested_on: list[str] = []
    workers: list[ModelOnWorker] = []


async def models(store: EventStore) -> list[ModelStatus]:
    """Return every model that is registered or served, by name.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    return listed(await model_registry.load(store), await fleet.load(store))


def listed(registry: ModelRegistry, workers: Fleet) -> list[ModelStatus]:
    """Return every model that is registered or served, by name, as the folds have them."""
    registered = registry.all()
    names = {model.name for model in registered}
    found = [_status(model, registry, workers) for model in registered]
    found += [_served(name, workers) for name in _living_models(workers) - names]
    return sorted(found, key=lambda model: model.name)


async def model(store: EventStore, name_or_alias: str) -> ModelStatus:
    """Return one model, also a retired one by its name.

    Raises:
        NotFound: it is neither registered nor served.
        EventStoreUnavailable: the log does not answer.
    """
    registry, workers = await model_registry.load(store), await fleet.load(store)
    known = registry.find(registry.resolve(name_or_alias) or name_or_alias)
    if known is not None and not (known.retired and workers.serving(name_or_alias)):
        return _status(known, registry, workers)
    if workers.serving(name_or_alias):
        return _served(name_or_alias, workers)
    raise NotFound(f"there is no model {name_or_alias!r}; `vllm-batch model list` has them")


def _living(workers: Fleet) -> list[WorkerView]:
    return [name.newest for name in workers.names.values() if name.newest.ended_at is None]


def _living_models(workers: Fleet) -> set[str]:
    return {name for worker in _living(workers) for name in worker.models}


def _on_workers(model: ModelView, workers: Fleet) -> list[ModelOnWorker]:
    found = []
    for worker in sorted(_living(workers), key=lambda worker: worker.name):
        if (status := _status_on(worker, model)) is not None:
            reason = model.failed.get(worker.worker_id) if status == "failed" else None
            found.append(ModelOnWorker(worker=worker.name, status=status, reason=reason))
    return found


def _status_on(worker: WorkerView, model: ModelView) -> WorkerStatus | None:
    """Return what a worker says of a model as it is registered now; what it serves under that name
    may be an older one."""
    if worker.worker_id in model.loading_on:
        return "loading"
    if worker.worker_id in model.failed:
        return "failed"
    fixed = worker.engine in FIXED_ENGINES and worker.state == "ready"
    if worker.worker_id in model.ready_on or (fixed and model.name in worker.models):
        return "ready"
    return None


def _status(model: ModelView, registry: ModelRegistry, workers: Fleet) -> ModelStatus:
    on_workers = _on_workers(model, workers)
    return ModelStatus(
        name=model.name,
        model_key=model.key,
        registered=not model.retired,
        status="retired" if model.retired else _best(on_workers, model.wanted),
        source=model.source,
        base=model.base,
        adapters=[one.name for one in registry.all() if one.base == model.name],
        training_run=model.training_run,
        engine_args=model.engine_args,
        aliases=model.aliases,
        input_price_per_million=model.prices.input_per_million,
        output_price_per_million=model.prices.output_per_million,
        load_requested=model.wanted,
        load_requested_on=sorted(model.wanted_on),
        workers=on_workers,
    )


def _served(name: str, workers: Fleet) -> ModelStatus:
    on_workers = [
        ModelOnWorker(worker=worker.name, status="ready") for worker in workers.serving(name)
    ]
    key = ids.model_key(name)
    status = _best(on_workers, wanted=False)
    return ModelStatus(
        name=name, model_key=key, registered=False, status=status, workers=on_workers
    )


def _best(on_workers: list[ModelOnWorker], wanted: bool) -> Status:
    said = {one.status for one in on_workers}
    for status in ("ready", "loading", "failed"):
        if status in said:
            return status
    return "waiting" if wanted else "idle"
