"""Which model an engine runs, and the way back to the one before where it cannot run that.

Used by engines that load models themselves. Owns no process; the engine says how a start went.
"""

from __future__ import annotations

import asyncio

import msgspec

from vllm_batch.errors import EngineFailed
from vllm_batch.settings import Settings
from vllm_batch.worker_control import ModelSpec


def configured_model(settings: Settings) -> ModelSpec:
    """Return the model that the settings name; its arguments are the worker's own."""
    return ModelSpec(name=settings.model_name, source=settings.model)


class Chosen(msgspec.Struct, frozen=True):
    """A base model; ``lora``: adapters of it can be loaded while it runs."""

    base: ModelSpec
    lora: bool


class Choice:
    """What the next start of an engine loads. ``adapters``: folder by name, of those loaded."""

    def __init__(self, settings: Settings) -> None:
        self.now = Chosen(configured_model(settings), settings.lora)
        self.adapters: dict[str, str] = {}
        self._before: tuple[Chosen, dict[str, str]] | None = None
        self._outcome: asyncio.Future[None] | None = None

    def choose(self, chosen: Chosen) -> None:
        """Have it loaded instead, without adapters."""
        if self._outcome is None:
            self._before = (self.now, self.adapters)
            self._outcome = asyncio.get_running_loop().create_future()
        self.now, self.adapters = chosen, {}

    def came_up(self) -> None:
        """The engine runs what was chosen."""
        outcome, self._outcome, self._before = self._outcome, None, None
        if outcome is not None and not outcome.done():
            outcome.set_result(None)

    def failed(self, last_words: str) -> bool:
        """The engine cannot run what was chosen; return whether there is a way back, now taken."""
        outcome, self._outcome = self._outcome, None
        if self._before is None:
            return False
        (self.now, self.adapters), self._before = self._before, None
        if outcome is not None and not outcome.done():
            outcome.set_exception(EngineFailed(last_words))
        return True

    async def settled(self) -> None:
        """Wait until what was chosen runs.

        Raises:
            EngineFailed: it cannot; the engine goes back to what it ran before.
        """
        if self._outcome is not None:
            await asyncio.shield(self._outcome)
