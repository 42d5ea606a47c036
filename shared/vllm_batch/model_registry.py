"""Every model of the registry, folded from its events: what a name or an alias means.

Reads ``model.>`` of the event log; writes nothing. Gateways, the orchestrator and workers see the
same models this way. What a worker serves without anybody having registered it is not in here: see
`fleet`.
"""

from __future__ import annotations

import msgspec

from vllm_batch import ids
from vllm_batch.aggregates import model as rules
from vllm_batch.aggregates.model import Model as ModelView
from vllm_batch.event_store import EventStore
from vllm_batch.events import Recorded
from vllm_batch.events.model import ModelEvent, ModelRegistered
from vllm_batch.ids import ModelKey
from vllm_batch.messaging import subjects

__all__ = ["ModelRegistry", "ModelView", "load"]


class ModelRegistry:
    """All models by key. ``position``: the last sequence that was folded in."""

    def __init__(self) -> None:
        self.position = 0
        self._models: dict[ModelKey, ModelView] = {}
        self._aliases: dict[str, str] = {}

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; one that is in already, or is no model's, changes nothing."""
        event = recorded.event
        self.position = max(self.position, recorded.seq)
        if not isinstance(event, ModelEvent):
            return
        before = self._models.get(event.model_key)
        if before is None and not isinstance(event, ModelRegistered):
            return
        if before is not None and recorded.seq <= before.seq:
            return
        after = self._models[event.model_key] = rules.evolve(before, recorded)
        if before is None or before.aliased_seq != after.aliased_seq or after.retired:
            self._aliases = self._meant()

    def resolve(self, name_or_alias: str) -> str | None:
        """Return the name of the model that is meant; None: nobody registered such a one.

        A model's own name goes before an alias of the same letters.
        """
        model = self._models.get(ids.model_key(name_or_alias))
        if model is not None and not model.retired:
            return name_or_alias
        return self._aliases.get(name_or_alias)

    def find(self, name: str) -> ModelView | None:
        """Return a model by its name, a retired one too; its aliases are those that mean it."""
        model = self._models.get(ids.model_key(name))
        return None if model is None else self._view(model)

    def all(self) -> list[ModelView]:
        """Return every model that is not retired, by name."""
        models = (self._view(model) for model in self._models.values() if not model.retired)
        return sorted(models, key=lambda model: model.name)

    def aliases(self) -> dict[str, str]:
        """Return the name that each alias means."""
        return dict(self._aliases)

    def _meant(self) -> dict[str, str]:
        """Return what each alias means: the model that was given it last."""
        oldest_first = sorted(self._models.values(), key=lambda model: model.aliased_seq)
        return {alias: model.name for model in oldest_first for alias in model.aliases}

    def _view(self, model: ModelView) -> ModelView:
        meant = [alias for alias in model.aliases if self._aliases.get(alias) == model.name]
        return msgspec.structs.replace(model, aliases=meant)


async def load(store: EventStore) -> ModelRegistry:
    """Return the registry as the log has it now.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    registry = ModelRegistry()
    async for batch in store.read(subjects.ALL_MODELS):
        for recorded in batch:
            registry.apply(recorded)
    return registry
