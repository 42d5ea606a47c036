"""The labeling projects as the bridge knows them: folded from the log, followed while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store import EventStore
from vllm_batch.events import LabelingPushRequested, Recorded
from vllm_batch.labeling import projects as labeling_projects
from vllm_batch.labeling.projects import Projects
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
_CATCH_UP_SECONDS = 10.0


class ProjectFeed:
    """``projects`` never goes back; ``on_event`` are told of every event after it was folded in."""

    def __init__(self, store: EventStore) -> None:
        self.projects = Projects()
        self.on_event: list[Callable[[Recorded], None]] = []
        self._store = store
        self._grown = asyncio.Condition()

    async def load(self) -> None:
        """Take in what there is now.

        Raises:
            EventStoreUnavailable: the log does not answer.
        """
        self.projects = await labeling_projects.load(self._store)

    async def follow(self) -> None:
        """Take in what comes, for ever. Start it after `load`."""
        # Requests to push change no project; with them `reached` works for who acts on one.
        wanted = [*labeling_projects.SUBJECTS, subjects.every(LabelingPushRequested)]
        while True:
            try:
                async for batch in self._store.follow(wanted, after=self.projects.position):
                    await self._take_in(batch)
            except Exception:  # the outermost loop of this duty
                log.exception("following projects failed; starting anew")
                await asyncio.sleep(_RETRY_SECONDS)

    async def reached(self, seq: int) -> None:
        """Return when the event ``seq``, which has to be one of a project, is folded in.

        Raises:
            EventStoreUnavailable: it did not come in time, though it is in the log.
        """
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS), self._grown:
                await self._grown.wait_for(lambda: self.projects.position >= seq)
        except TimeoutError:
            raise EventStoreUnavailable(
                f"event {seq} did not come back in {_CATCH_UP_SECONDS:g} s"
            ) from None

    async def _take_in(self, batch: list[Recorded]) -> None:
        async with self._grown:
            for recorded in batch:
                self.projects.apply(recorded)
                for tell in self.on_event:
                    tell(recorded)
            self._grown.notify_all()
