"""When a project is due for training. Pure: what the log says and the time in, a wish out.

The id of a wish derives from what it follows: however many bridges look, it is one wish.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from vllm_batch import ids
from vllm_batch.aggregates.training import Run
from vllm_batch.events import LabelingProjectConfigured, TrainingRequested
from vllm_batch.events.training import Trigger
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.settings import Settings

REQUESTED_BY = "rule"


def due(
    view: ProjectView, runs: Sequence[Run], now: datetime, settings: Settings
) -> TrainingRequested | None:
    """Return the wish for a run, None if it is not the time. ``runs``: the project's, oldest
    first."""
    configured = view.project.configured
    if configured is None or view.project.deleted or any(not run.ended for run in runs):
        return None
    last = runs[-1] if runs else None
    if last is not None and _may_retry(last, settings):
        return _again(last)
    trigger = _trigger(view, configured, last, now, settings)
    return _wish(view, last, trigger) if trigger else None


def is_left(run: Run, runs: Iterable[Run], now: datetime, settings: Settings) -> bool:
    """Tell whether a prepared run waits for a trainer that is not there: ``runs`` are those of all
    projects, and while one of them is trained, the others wait for that."""
    heard = max([run.at, *(one.at for one in runs if one.started)])
    return now - heard > timedelta(seconds=settings.training_wait_seconds)


def is_silent(run: Run, now: datetime, settings: Settings) -> bool:
    """Tell whether a running run's trainer has said nothing for too long."""
    return now - run.at > timedelta(seconds=settings.training_silent_seconds)


def _trigger(
    view: ProjectView,
    configured: LabelingProjectConfigured,
    last: Run | None,
    now: datetime,
    settings: Settings,
) -> Trigger | None:
    """Return which rule wants a run. None wants one that could not be measured: it waits until it
    can be, and what is validated meanwhile still counts."""
    if not configured.train_after and not configured.train_every_seconds:
        return None
    if len(view.truths()) < settings.training_ground_truth_min:
        return None
    fresh = _fresh(view, last.requested_seq if last else 0)
    if configured.train_after and fresh >= configured.train_after:
        return "annotations"
    pause = timedelta(seconds=configured.train_every_seconds)
    if pause and fresh and (last is None or now - last.requested_at >= pause):
        return "schedule"
    return None


def _may_retry(run: Run, settings: Settings) -> bool:
    failed = run.failed is not None and run.failed.retryable
    return failed and run.requested.attempt <= settings.training_retries_max


def _fresh(view: ProjectView, after: int) -> int:
    """Count what was validated after that place in the log and may be trained on."""
    return sum(
        1
        for one in view.validated().values()
        if one.seq > after and one.written and not one.written.ground_truth
    )


def _again(failed: Run) -> TrainingRequested:
    return TrainingRequested(
        run_id=ids.derived("run_", failed.run_id, "retry"),
        project=failed.requested.project,
        trigger="retry",
        requested_by=REQUESTED_BY,
        retry_of=failed.run_id,
        attempt=failed.requested.attempt + 1,
    )


def _wish(view: ProjectView, last: Run | None, trigger: Trigger) -> TrainingRequested:
    project = view.project.project
    return TrainingRequested(
        run_id=ids.derived("run_", project, last.run_id if last else "first"),
        project=project,
        trigger=trigger,
        requested_by=REQUESTED_BY,
    )
