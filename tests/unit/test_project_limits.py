"""Limits of projects, folded from the log."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from vllm_batch import ids, project_limits
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events.project import ProjectBudgetReached, ProjectConfigured
from vllm_batch.ids import ProjectId
from vllm_batch.settings import Settings

ETL = ProjectId("etl")
WHO = {"project_key": ids.project_key(ETL), "project": ETL, "requested_by": "test"}
NOW = datetime(2026, 1, 20, tzinfo=UTC)


def reached(budget: float) -> ProjectBudgetReached:
    return ProjectBudgetReached(**WHO, month="2026-01", share=1.0, spent=budget, budget=budget)  # type: ignore[arg-type]


async def test_what_was_said_of_a_budget_that_was_raised_meanwhile_stops_nobody() -> None:
    store = MemoryEventStore()
    for budget in (5.0, 50.0):
        given = ProjectConfigured(**WHO, budget_per_month=budget, budget_stops=True)  # type: ignore[arg-type]
        await project_limits.record(store, given)
    await project_limits.record(store, reached(5.0))  # by who had read the log before the raise
    limits = await project_limits.load(store, Settings())
    assert not limits.out_of_budget(ETL, NOW)
    await project_limits.record(store, reached(50.0))
    limits = await project_limits.load(store, Settings())
    assert limits.out_of_budget(ETL, NOW)


async def test_a_change_of_another_limit_does_not_reopen_a_project_that_was_stopped() -> None:
    store = MemoryEventStore()
    given = ProjectConfigured(**WHO, budget_per_month=5.0, budget_stops=True)  # type: ignore[arg-type]
    for event in (given, reached(5.0), msgspec.structs.replace(given, requests_per_minute=60)):
        await project_limits.record(store, event)
    limits = await project_limits.load(store, Settings())
    assert limits.out_of_budget(ETL, NOW)
