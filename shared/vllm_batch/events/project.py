"""Events of a project: a tenant with its keys, files and batches, what it may use, and its end.

The aggregate is the name's `ids.project_key`, as names are a user's text.
"""

from __future__ import annotations

from typing import ClassVar

from vllm_batch.events.base import Event
from vllm_batch.ids import ProjectId


class _ProjectEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("project_key",)

    project_key: str
    project: ProjectId
    requested_by: str


class ProjectConfigured(_ProjectEvent, frozen=True, kw_only=True):
    """From now on exactly these limits count. None: the setting's default; 0: none at all.

    ``budget_per_month`` is in the currency of the models' prices; once it is used up, new work is
    refused if ``budget_stops``, else only warned of.
    """

    TYPE: ClassVar[str] = "project.configured"

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    queued_requests_max: int | None = None
    storage_bytes_max: int | None = None
    budget_per_month: float | None = None
    budget_stops: bool = False


class ProjectBudgetReached(_ProjectEvent, frozen=True, kw_only=True):
    """``share`` (0.8, 1.0) of the budget of ``month`` (``2026-01``) is used up."""

    TYPE: ClassVar[str] = "project.budget_reached"

    month: str
    share: float
    spent: float
    budget: float


class ProjectPurgeRequested(_ProjectEvent, frozen=True, kw_only=True):
    """Everything it has is to be deleted: its keys open nothing from now on."""

    TYPE: ClassVar[str] = "project.purge_requested"


class ProjectPurged(_ProjectEvent, frozen=True, kw_only=True):
    """Its files, results and keys are gone. The log keeps what its events say: ids, numbers, names
    of files and metadata of batches."""

    TYPE: ClassVar[str] = "project.purged"

    files: int
    batches: int


ProjectEvent = ProjectConfigured | ProjectBudgetReached | ProjectPurgeRequested | ProjectPurged
