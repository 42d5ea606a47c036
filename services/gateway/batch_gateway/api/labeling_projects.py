"""The labeling projects as the API knows them: read when somebody asks, and then only what is new.

A project of 100,000 annotations is as many events: they are folded once, not at every call.
"""

from __future__ import annotations

import asyncio

from vllm_batch.event_store import EventStore
from vllm_batch.labeling import projects
from vllm_batch.labeling.projects import Projects


class LabelingProjects:
    """Nothing is read before the first call of `now`."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._projects = Projects()
        self._reading = asyncio.Lock()

    async def now(self) -> Projects:
        """Return the projects as the log has them now; do not change them.

        Raises:
            EventStoreUnavailable: the log does not answer.
        """
        async with self._reading:
            await projects.catch_up(self._store, self._projects)
        return self._projects
