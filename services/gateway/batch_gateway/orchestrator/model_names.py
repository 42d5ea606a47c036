"""What the names of models that requests ask for mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from batch_gateway.orchestrator.board import Board


class Names(Protocol):
    """Tells which model a name means."""

    def resolve(self, name: str) -> str | None:
        """Return the model that a name or alias means, None where it means none."""

    def known(self) -> list[str]:
        """Return every name and alias that means a model."""


class BoardNames:
    """What names mean now: to the registry, or to a worker that has ever served a model of that
    name without anybody registering it."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def resolve(self, name: str) -> str | None:
        """See `Names`. A model that was retired is not there any more."""
        registry = self._board.registry
        if (meant := registry.resolve(name)) is not None:
            return meant
        return name if name in self._board.models and registry.find(name) is None else None

    def known(self) -> list[str]:
        """See `Names`."""
        registry = self._board.registry
        registered = {model.name for model in registry.all()} | registry.aliases().keys()
        served = {name for name in self._board.models if registry.find(name) is None}
        return sorted(registered | served)


class RecordedNames:
    """What names meant when a plan was begun that another planner now goes on with."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._aliases = aliases

    def resolve(self, name: str) -> str | None:
        """See `Names`. The plan's author knew them all."""
        return self._aliases.get(name, name)

    def known(self) -> list[str]:
        """See `Names`."""
        return list(self._aliases)
