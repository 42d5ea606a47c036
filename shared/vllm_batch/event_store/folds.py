"""Keeping something in memory that is folded from the log: read to the end, then follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import structlog

from vllm_batch.event_store.protocol import EventStore
from vllm_batch.events import Recorded

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0


class Fold(Protocol):
    """Takes events in, each once and in order. ``position``: the last sequence taken in."""

    position: int

    def apply(self, recorded: Recorded) -> None:
        """Take one event in."""
        ...


async def take_in(store: EventStore, subject: str, fold: Fold) -> None:
    """Have ``fold`` take in everything there is now under ``subject``.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    async for batch in store.read(subject, after=fold.position):
        for recorded in batch:
            fold.apply(recorded)


async def keep_up(
    store: EventStore, subject: str, fold: Fold, on_change: Callable[[], None] = lambda: None
) -> None:
    """Have ``fold`` take in what comes after what it has, for ever."""
    while True:
        batches = store.follow([subject], after=fold.position)
        try:
            async for batch in batches:
                for recorded in batch:
                    fold.apply(recorded)
                on_change()
        except Exception:  # the outermost loop of this duty
            log.exception("following failed; starting anew", subject=subject, after=fold.position)
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            if isinstance(batches, AsyncGenerator):
                await batches.aclose()  # what it holds is given back at once
