"""Read models ``registered_model`` (with every price it ever had) and ``model_on_worker``.

The views ``model_alias`` and ``model_price`` are made of them. What workers announce by their own
configuration is in `workers`.
"""

from __future__ import annotations

import msgspec

from vllm_batch.errors import ProjectionError
from vllm_batch.events import Event, Recorded
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
from vllm_batch.projections.rows import ModelOnWorkerRow, ModelPriceRow, RegisteredModelRow
from vllm_batch.projections.table import Key, Table

_UNWANTED: dict[str, object] = {"wanted_anywhere": False, "wanted_on": []}


def evolve(row: RegisteredModelRow | None, recorded: Recorded) -> RegisteredModelRow:
    """Return the model's row after ``recorded``.

    Raises:
        ProjectionError: the log has this event but no registration before it.
    """
    event = recorded.event
    if isinstance(event, ModelRegistered):
        return _registered(row, event, recorded)
    if row is None:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) belongs to no known model")
    match event:
        case ModelAliased(aliases=aliases):
            changes: dict[str, object] = {"aliases": aliases, "aliased_seq": recorded.seq}
        case ModelPriced():
            changes = {"prices": _prices(row, event, recorded)}
        case ModelLoadRequested(worker=None):
            changes = {"wanted_anywhere": True}
        case ModelLoadRequested(worker=str(worker)):
            changes = {"wanted_on": sorted({*row.wanted_on, worker})}
        case ModelUnloadRequested(worker=None):
            changes = _UNWANTED
        case ModelUnloadRequested(worker=worker):
            changes = {"wanted_on": [one for one in row.wanted_on if one != worker]}
        case ModelRetired():
            changes = {"aliases": [], "retired_at": _now(recorded), **_UNWANTED}
        case _:
            raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is none of a model's")
    return msgspec.structs.replace(row, **changes)


def _registered(
    row: RegisteredModelRow | None, event: ModelRegistered, recorded: Recorded
) -> RegisteredModelRow:
    return RegisteredModelRow(
        model_key=event.model_key,
        seq=row.seq if row else recorded.seq,
        name=event.name,
        source=event.source,
        base=event.base,
        engine_args=event.engine_args,
        aliases=event.aliases,
        aliased_seq=recorded.seq,
        prices=_prices(row, event, recorded),
        training_run=event.training_run,
        wanted_anywhere=row.wanted_anywhere if row else False,
        wanted_on=row.wanted_on if row else [],
        created_at=row.created_at if row else _now(recorded),
    )


def _prices(
    row: RegisteredModelRow | None, event: ModelRegistered | ModelPriced, recorded: Recorded
) -> list[ModelPriceRow]:
    before = row.prices if row else []
    price = ModelPriceRow(
        since=max([_now(recorded), *(one.since for one in before)]),  # the clock may step back
        input_per_million=event.input_price_per_million,
        output_per_million=event.output_price_per_million,
    )
    if before and msgspec.structs.replace(before[-1], since=price.since) == price:
        return before
    return [*before, price]


def evolve_on_worker(_: ModelOnWorkerRow | None, recorded: Recorded) -> ModelOnWorkerRow:
    """Return what the worker says last: the event has all of it.

    Raises:
        ProjectionError: the event is none of a model on a worker.
    """
    event = recorded.event
    match event:
        case ModelLoading():
            said: dict[str, object] = {"status": "loading"}
        case ModelReady(load_seconds=seconds):
            said = {"status": "ready", "load_seconds": seconds}
        case ModelFailed(reason=reason):
            said = {"status": "failed", "reason": reason}
        case ModelUnloaded(reason=reason):
            said = {"status": "unloaded", "reason": reason}
        case _:
            raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is no worker's report")
    return ModelOnWorkerRow(
        model_key=event.model_key,
        worker_id=event.worker_id,
        worker_name=event.worker_name,
        since=_now(recorded),
        **said,  # type: ignore[arg-type]
    )


def _now(recorded: Recorded) -> int:
    return int(recorded.time.timestamp())


def _keys(event: Event) -> list[Key]:
    return [event.aggregate_id()]


def _worker_keys(event: Event) -> list[Key]:
    if isinstance(event, ModelLoading | ModelReady | ModelFailed | ModelUnloaded):
        return [(event.model_key, event.worker_id)]
    return []


TABLE = Table(
    name="registered_model",
    row=RegisteredModelRow,
    key=("model_key",),
    events=(
        ModelRegistered, ModelAliased, ModelPriced, ModelLoadRequested, ModelUnloadRequested,
        ModelRetired,
    ),
    first=None,
    keys=_keys,
    evolve=lambda row, recorded, _key: evolve(row, recorded),
)  # fmt: skip

ON_WORKER_TABLE = Table(
    name="model_on_worker",
    row=ModelOnWorkerRow,
    key=("model_key", "worker_id"),
    events=(ModelLoading, ModelReady, ModelFailed, ModelUnloaded),
    first=None,
    keys=_worker_keys,
    evolve=lambda row, recorded, _key: evolve_on_worker(row, recorded),
)
