"""Events of a model of the registry: a base model, or an adapter (LoRA) of one.

The aggregate is the name's `ids.model_key`. What a person wants of it (registered, aliased, priced,
load or unload requested, retired) and what workers did (loading, ready, failed, unloaded) stand in
one history.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from vllm_batch.events.base import Event
from vllm_batch.ids import ModelKey, WorkerId

UnloadReason = Literal["swapped", "requested", "retired", "worker_stopped", "engine_failed"]


class _ModelEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("model_key",)

    model_key: ModelKey


class ModelRegistered(_ModelEvent, frozen=True, kw_only=True):
    """A model may be asked for by ``name``. Registering it again replaces what it is made of.

    ``source``: Hugging Face id, local folder or URL of an archive in the blob store. ``base``: the
    name of the model that this one is an adapter of. Prices are per million tokens.
    ``training_run``: the run that made it.
    """

    TYPE: ClassVar[str] = "model.registered"

    name: str
    source: str
    base: str | None = None
    engine_args: list[str] = msgspec.field(default_factory=list)
    aliases: list[str] = msgspec.field(default_factory=list)
    input_price_per_million: float | None = None
    output_price_per_million: float | None = None
    training_run: str | None = None
    requested_by: str


class ModelAliased(_ModelEvent, frozen=True, kw_only=True):
    """From now on exactly these other names mean this model; one taken from another moves here."""

    TYPE: ClassVar[str] = "model.aliased"

    aliases: list[str]
    requested_by: str


class ModelPriced(_ModelEvent, frozen=True, kw_only=True):
    """What a million tokens cost from now on; what ran before keeps its price."""

    TYPE: ClassVar[str] = "model.priced"

    input_price_per_million: float | None
    output_price_per_million: float | None
    requested_by: str


class ModelLoadRequested(_ModelEvent, frozen=True, kw_only=True):
    """Somebody wants it served, whatever its backlog; ``worker``: by this one (id or name)."""

    TYPE: ClassVar[str] = "model.load_requested"

    worker: str | None = None
    requested_by: str


class ModelUnloadRequested(_ModelEvent, frozen=True, kw_only=True):
    """Somebody wants it served no longer than its backlog asks for."""

    TYPE: ClassVar[str] = "model.unload_requested"

    worker: str | None = None
    requested_by: str


class _ModelOnWorker(_ModelEvent, frozen=True, kw_only=True):
    worker_id: WorkerId
    worker_name: str


class ModelLoading(_ModelOnWorker, frozen=True, kw_only=True):
    """A worker has begun to load it."""

    TYPE: ClassVar[str] = "model.loading"


class ModelReady(_ModelOnWorker, frozen=True, kw_only=True):
    """A worker answers requests for it."""

    TYPE: ClassVar[str] = "model.ready"

    load_seconds: float = 0.0


class ModelFailed(_ModelOnWorker, frozen=True, kw_only=True):
    """A worker could not load it; ``reason`` has the engine's last words."""

    TYPE: ClassVar[str] = "model.failed"

    reason: str


class ModelUnloaded(_ModelOnWorker, frozen=True, kw_only=True):
    """A worker no longer serves it."""

    TYPE: ClassVar[str] = "model.unloaded"

    reason: UnloadReason


class ModelRetired(_ModelEvent, frozen=True, kw_only=True):
    """It may not be asked for any more; its aliases are free."""

    TYPE: ClassVar[str] = "model.retired"

    requested_by: str


ModelEvent = (
    ModelRegistered
    | ModelAliased
    | ModelPriced
    | ModelLoadRequested
    | ModelUnloadRequested
    | ModelLoading
    | ModelReady
    | ModelFailed
    | ModelUnloaded
    | ModelRetired
)
