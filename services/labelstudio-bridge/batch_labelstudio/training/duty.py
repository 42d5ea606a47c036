"""Takes every training run a step further, and asks for new ones when they are due.

Reads ``training.>`` and what the bridge knows of projects and models; appends ``training.*`` and,
through `model_orders`, ``model.*``. Knows nothing that is not in the log: after a crash the next
look goes on from there, and several bridges do the same thing once.
"""

from __future__ import annotations

import asyncio

import structlog

from batch_labelstudio.bridge import Bridge
from batch_labelstudio.training import judging, policy, preparing
from vllm_batch import tasks, training_runs
from vllm_batch.aggregates.training import Run, RunEvent, RunStatus
from vllm_batch.errors import (
    BatchError,
    EventStoreUnavailable,
    InvalidInput,
    ModelRefused,
    NotFound,
    Rejected,
)
from vllm_batch.event_store import folds
from vllm_batch.events import TrainingFailed, TrainingPrepared
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.messaging import subjects
from vllm_batch.training_runs import TrainingRuns

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""Time is a reason too (schedules, silence, models that get ready), so it looks this often."""
MEASURE_PAUSE_SECONDS_MAX = 15.0
"""A model that does not answer is asked again after pauses that double up to this one."""


async def run(bridge: Bridge) -> None:
    """See to all training runs, for ever."""
    runs = TrainingRuns()
    await folds.take_in(bridge.store, subjects.ALL_TRAINING, runs)
    following = asyncio.create_task(folds.keep_up(bridge.store, subjects.ALL_TRAINING, runs))
    duty = TrainingDuty(bridge, runs)
    try:
        while True:
            try:
                await duty.look()
            except BatchError as error:
                log.warning("later again", error=str(error))
            except Exception:  # the outermost loop of this duty
                log.exception("looking after training failed; going on")
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await tasks.end(following)


class TrainingDuty:
    """One look after another. ``runs`` is kept up by somebody else."""

    def __init__(self, bridge: Bridge, runs: TrainingRuns) -> None:
        self._bridge = bridge
        self._runs = runs
        self._refused: dict[str, tuple[float, float]] = {}
        """When, by the monotonic clock, to measure again, and the pause until then."""

    async def look(self) -> None:
        """Take every open run a step further, and ask for those that are due.

        What cannot be done now for one run or project keeps no other from its own; it is looked
        at again.

        Raises:
            EventStoreUnavailable: the log is away, so nothing can be done.
        """
        now = self._bridge.clock.monotonic()
        for run in self._runs.open():
            if self._refused.get(run.run_id, (now, 0.0))[0] > now:
                continue
            try:
                await self._further(run)
            except EventStoreUnavailable:
                raise
            except BatchError as error:
                log.warning("a run waits", run=run.run_id, error=str(error))
        for view in self._bridge.feed.projects.all():
            of_project = self._runs.of_project(view.project.project)
            wish = policy.due(view, of_project, self._bridge.clock.now(), self._bridge.settings)
            if wish is not None:
                log.info("training is due", project=wish.project, why=wish.trigger)
                await self._record(wish)

    async def _further(self, run: Run) -> None:
        view = self._bridge.feed.projects.find(run.requested.project)
        if view is None or view.project.deleted:
            await self._record(judging.given_up(run, "the project is gone"))
        else:
            await self._step(view, run)

    async def _step(self, view: ProjectView, run: Run) -> None:
        try:
            said = await self._next(view, run)
        except (Rejected, InvalidInput, NotFound) as error:
            said = _failed(run, str(error))
        except ModelRefused as error:
            if not judging.is_late(self._bridge, run):
                self._measure_later(run.run_id, str(error))
                return
            said = _failed(run, str(error))
        self._refused.pop(run.run_id, None)
        if said is not None:
            await self._record(said)
        if isinstance(said, TrainingFailed) and run.completed and run.prepared:
            name = judging.adapter_name(run, run.prepared.alias)
            await judging.discard(self._bridge, name)

    def _measure_later(self, run_id: str, why: str) -> None:
        _, pause = self._refused.get(run_id, (0.0, LOOK_SECONDS / 2))
        pause = min(2 * pause, MEASURE_PAUSE_SECONDS_MAX)
        self._refused[run_id] = (self._bridge.clock.monotonic() + pause, pause)
        log.warning("cannot measure now", run=run_id, error=why, again_in_seconds=pause)

    async def _next(self, view: ProjectView, run: Run) -> RunEvent | None:
        bridge = self._bridge
        match run:
            case Run(status=RunStatus.REQUESTED):
                return await self._prepare(view, run)
            case Run(status=RunStatus.PREPARED):
                everyone = self._runs.runs.values()
                if policy.is_left(run, everyone, bridge.clock.now(), bridge.settings):
                    seconds = bridge.settings.training_wait_seconds
                    reason = (
                        f"no trainer took it within {seconds:g} s; start one with "
                        f"`python -m batch_gpu_worker trainer`, or with `vllm-batch up`"
                    )
                    return TrainingFailed(run_id=run.run_id, reason=reason, retryable=True)
            case Run(status=RunStatus.RUNNING):
                if policy.is_silent(run, bridge.clock.now(), bridge.settings):
                    seconds = bridge.settings.training_silent_seconds
                    reason = f"its trainer has said nothing for {seconds:g} s"
                    return TrainingFailed(run_id=run.run_id, reason=reason, retryable=True)
            case Run(status=RunStatus.COMPLETED, prepared=prepared) if prepared:
                return await judging.evaluate(bridge, view, run, prepared)
            case Run(status=RunStatus.EVALUATED, evaluated=measured, prepared=prepared) if (
                measured and prepared
            ):
                return await judging.conclude(bridge, measured, prepared.alias)
        return None

    async def _prepare(self, view: ProjectView, run: Run) -> RunEvent | None:
        """One run of a project after the other; a button that is hit twice trains once."""
        of_project = self._runs.of_project(run.requested.project)
        before = [one for one in of_project if one.requested_seq < run.requested_seq]
        if any(not one.ended for one in before):
            return None
        prepared = await preparing.prepare(self._bridge, view, run)
        if run.requested.trigger == "button":
            for one in before:
                if one.completed and one.prepared and _same(one.prepared, prepared):
                    return _failed(run, f"run {one.run_id} has learned the same examples")
        return prepared

    async def _record(self, said: RunEvent) -> None:
        try:
            run = await training_runs.record(self._bridge.store, said)
            log.info("training run", run=run.run_id, status=run.status.value)
        except Rejected as error:
            log.info("the run has gone on", run=said.run_id, why=str(error))


def _same(one: TrainingPrepared, other: TrainingPrepared) -> bool:
    return (one.dataset_id, one.base_model) == (other.dataset_id, other.base_model)


def _failed(run: Run, reason: str) -> TrainingFailed:
    return TrainingFailed(run_id=run.run_id, reason=reason)
