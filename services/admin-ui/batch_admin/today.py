"""Figures of the read models that every overview shows: asked for by one page, told to all.

They are asked for again only after events that may change them, and not more often than every
REFRESH_SECONDS, however many pages are open.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from vllm_batch.clock import Clock
from vllm_batch.errors import ProjectionUnavailable
from vllm_batch.projections.admin_reads import AdminReads

REFRESH_SECONDS = 10.0
_CATCH_UP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was used since midnight (UTC, as everywhere in the accounts), and the labeling projects
    with flagged annotations: (project, title, how many)."""

    cost: float
    tokens: int
    requests: int
    flagged: list[tuple[str, str, int]]


class Today:
    """See the module."""

    def __init__(self, reads: AdminReads, clock: Clock) -> None:
        self._reads = reads
        self._clock = clock
        self._known: Figures | None = None
        self._asked_at = 0.0
        self._position = -1
        self._asking = asyncio.Lock()

    async def figures(self, position: int) -> Figures | None:
        """Return the figures; ``position``: the last event so far. None: Postgres is away."""
        async with self._asking:
            age = self._clock.monotonic() - self._asked_at
            if position != self._position and (self._known is None or age >= REFRESH_SECONDS):
                self._asked_at, self._position = self._clock.monotonic(), position
                try:
                    if not await self._reads.wait_for(position, _CATCH_UP_SECONDS):
                        self._position = -1  # ask again, whatever happens or not
                    self._known = await self._ask()
                except ProjectionUnavailable:
                    self._known, self._position = None, -1
            return self._known

    async def _ask(self) -> Figures:
        start = self._clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
        until = start + timedelta(days=1)
        used = await self._reads.usage(int(start.timestamp()), int(until.timestamp()))
        projects = await self._reads.labeling_projects()
        return Figures(
            cost=sum(one.cost or 0 for one in used),
            tokens=sum(one.input_tokens + one.output_tokens for one in used),
            requests=sum(one.requests for one in used),
            flagged=[(one.project, one.title, one.flagged) for one in projects if one.flagged],
        )
