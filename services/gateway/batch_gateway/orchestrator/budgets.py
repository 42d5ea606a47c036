"""Watches what projects spend: says once when most of a month's budget is gone, and once when all.

Asks the read models every budget_check_seconds; appends ``project.budget_reached``. The gateways
refuse new work of a project whose budget stops it. While Postgres is away nobody is stopped.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import structlog

from vllm_batch import project_limits
from vllm_batch.clock import Clock
from vllm_batch.errors import ProjectionUnavailable
from vllm_batch.event_store import EventStore
from vllm_batch.events.project import ProjectBudgetReached, ProjectConfigured
from vllm_batch.projections.read_models import ReadModels
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

SHARES = (0.8, 1.0)
_SOURCE = "orchestrator"


class Budgets:
    """The duty."""

    def __init__(self, store: EventStore, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock

    async def run(self) -> None:
        """Look for ever."""
        async with ReadModels.connect(self._settings) as models:
            while True:
                try:
                    await self.look(models)
                except ProjectionUnavailable as error:
                    log.info("budgets not looked at", error=str(error))
                await asyncio.sleep(self._settings.budget_check_seconds)

    async def look(self, models: ReadModels) -> None:
        """Record what was reached since the last look.

        Raises:
            ProjectionUnavailable: the read models are away.
        """
        limits = await project_limits.load(self._store, self._settings)
        now = self._clock.now()
        for configured in limits.configured:
            if configured.budget_per_month:
                spent = await self._spent(models, configured, now)
                await self._compare(limits, configured, spent, project_limits.month_of(now))

    async def _spent(
        self, models: ReadModels, configured: ProjectConfigured, now: datetime
    ) -> float:
        first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        rows = await models.usage(
            int(first.timestamp()), int(now.timestamp()) + 1, configured.project
        )
        return sum(row.cost for row in rows)

    async def _compare(
        self,
        limits: project_limits.ProjectLimits,
        configured: ProjectConfigured,
        spent: float,
        month: str,
    ) -> None:
        budget = configured.budget_per_month or 0.0
        reached = limits.reached_share(configured.project, month)
        share = max((share for share in SHARES if spent >= share * budget), default=0.0)
        if share <= reached:
            return
        event = ProjectBudgetReached(
            project_key=configured.project_key, project=configured.project, requested_by=_SOURCE,
            month=month, share=share, spent=spent, budget=budget,
        )  # fmt: skip
        await project_limits.record(self._store, event)
        log.warning(
            "budget reached", project=configured.project, share=share, spent=spent, budget=budget
        )
