"""One module per page; each has a ``PAGE``. Their order here is the menu's."""

from __future__ import annotations

from batch_admin.pages import (
    batch,
    batches,
    events,
    labeling,
    labeling_project,
    models,
    overview,
    playground,
    settings,
    usage,
    worker_logs,
    workers,
)

PAGES = (
    overview.PAGE,
    batches.PAGE,
    workers.PAGE,
    worker_logs.PAGE,
    models.PAGE,
    playground.PAGE,
    labeling.PAGE,
    events.PAGE,
    usage.PAGE,
    settings.PAGE,
    batch.PAGE,
    labeling_project.PAGE,
)
