"""The registry of models as the bridge knows it: which model answers for a project right now."""

from __future__ import annotations

import asyncio

import structlog

from vllm_batch import model_registry
from vllm_batch.event_store import EventStore
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.messaging import subjects
from vllm_batch.model_registry import ModelRegistry

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0


class ModelFeed:
    """Folds ``model.>`` and follows it, so that a promoted model answers the next question."""

    def __init__(self, store: EventStore) -> None:
        self.registry = ModelRegistry()
        self._store = store

    async def load(self) -> None:
        """Take in what there is now.

        Raises:
            EventStoreUnavailable: the log does not answer.
        """
        self.registry = await model_registry.load(self._store)

    async def follow(self) -> None:
        """Take in what comes, for ever. Start it after `load`."""
        while True:
            try:
                wanted = [subjects.ALL_MODELS]
                async for batch in self._store.follow(wanted, after=self.registry.position):
                    for recorded in batch:
                        self.registry.apply(recorded)
            except Exception:  # the outermost loop of this duty
                log.exception("following models failed; starting anew")
                await asyncio.sleep(_RETRY_SECONDS)

    def version_for(self, view: ProjectView | None) -> str | None:
        """Return the name of the model that predicts for a project; None: none is configured.

        It is also the version that Label Studio sees: another model is another version, and while
        one is asked about many tasks, an alias that moves changes nothing.
        """
        configured = view.project.configured if view and not view.project.deleted else None
        if configured is None:
            return None
        return self.registry.resolve(configured.model) or configured.model
