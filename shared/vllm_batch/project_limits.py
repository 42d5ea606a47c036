"""What each project may use: defaults of the settings, and what the log says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import NamedTuple

from vllm_batch import ids
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import Event, Recorded
from vllm_batch.events.project import (
    ProjectBudgetReached,
    ProjectConfigured,
    ProjectEvent,
    ProjectPurgeRequested,
)
from vllm_batch.ids import ProjectId
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings


class Limits(NamedTuple):
    """A project's limits; 0 is none. ``budget_per_month``: None for none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    queued_requests_max: int = 0
    storage_bytes_max: int = 0
    budget_per_month: float | None = None
    budget_stops: bool = False


class ProjectLimits:
    """Every project's limits, folded from ``project.>``. ``position``: the last sequence."""

    def __init__(self, settings: Settings) -> None:
        self._defaults = Limits(
            settings.project_requests_per_minute,
            settings.project_tokens_per_minute,
            settings.project_queued_requests_max,
            settings.project_storage_bytes_max,
        )
        self._configured: dict[ProjectId, ProjectConfigured] = {}
        self._closed: set[ProjectId] = set()
        self._reached: dict[tuple[ProjectId, str], float] = {}
        self.position = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def reached(self, seq: int, timeout_seconds: float) -> None:
        """Wait until ``seq`` is folded in, at most ``timeout_seconds``."""
        if self.position >= seq:
            return
        arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((seq, arrival))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await arrival

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in."""
        self.position = recorded.seq
        for seq, arrival in self._waiting:
            if seq <= self.position and not arrival.done():
                arrival.set_result(None)
        self._waiting = [entry for entry in self._waiting if not entry[1].done()]
        match recorded.event:
            case ProjectConfigured(project=project) as configured:
                before = self._configured.get(project)
                self._configured[project] = configured
                if before is None or before.budget_per_month != configured.budget_per_month:
                    for key in [key for key in self._reached if key[0] == project]:
                        del self._reached[key]  # another budget is looked at anew
            case ProjectBudgetReached(project=project, month=month, share=share, budget=budget):
                given = self._configured.get(project)
                if given is not None and given.budget_per_month == budget:
                    self._reached[project, month] = share  # else it was given another meanwhile
            case ProjectPurgeRequested(project=project):
                self._closed.add(project)

    def of(self, project: ProjectId) -> Limits:
        """Return the limits that count for ``project``."""
        given = self._configured.get(project)
        if given is None:
            return self._defaults
        default = self._defaults
        return Limits(
            _or(given.requests_per_minute, default.requests_per_minute),
            _or(given.tokens_per_minute, default.tokens_per_minute),
            _or(given.queued_requests_max, default.queued_requests_max),
            _or(given.storage_bytes_max, default.storage_bytes_max),
            given.budget_per_month,
            given.budget_stops,
        )

    def is_closed(self, project: ProjectId) -> bool:
        """Tell whether the project is to be, or was, purged."""
        return project in self._closed

    def reached_share(self, project: ProjectId, month: str) -> float:
        """Return the largest share of a month's budget that was said to be used up."""
        return self._reached.get((project, month), 0.0)

    def out_of_budget(self, project: ProjectId, now: datetime) -> bool:
        """Tell whether the month's budget is used up and stops the project."""
        spent = self.reached_share(project, month_of(now)) >= 1.0
        return spent and self.of(project).budget_stops

    def given(self, project: ProjectId) -> ProjectConfigured | None:
        """Return what was configured for ``project`` last, None for nothing."""
        return self._configured.get(project)

    @property
    def configured(self) -> list[ProjectConfigured]:
        """What was configured, by project, in the order of the first time."""
        return list(self._configured.values())


def month_of(time: datetime) -> str:
    """Return the month of ``time`` in UTC, such as ``2026-01``."""
    return time.astimezone(UTC).strftime("%Y-%m")


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


async def load(store: EventStore, settings: Settings) -> ProjectLimits:
    """Return the limits as the log has them now.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    limits = ProjectLimits(settings)
    async for batch in store.read(subjects.ALL_PROJECTS):
        for recorded in batch:
            limits.apply(recorded)
    return limits


async def purge(store: EventStore, project: ProjectId, *, requested_by: str) -> Recorded:
    """Record that a project is to be closed for good.

    Raises:
        Conflict: others were faster every time.
    """
    key = ids.project_key(project)
    event = ProjectPurgeRequested(project_key=key, project=project, requested_by=requested_by)
    return await record(store, event)


async def record(store: EventStore, event: ProjectEvent) -> Recorded:
    """Append what happened to a project.

    Raises:
        Conflict: others were faster every time.
    """

    def last(_: Event | None, recorded: Recorded) -> Event:
        return recorded.event

    subject = subjects.of_aggregate(event)
    recorded, _ = await append_decided(store, subject, last, lambda _: event)
    return recorded
