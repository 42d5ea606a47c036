"""Training runs, folded from the log, and what people may ask of them.

Reads ``training.>``; appends ``training.*`` and, to promote by hand and to roll back, ``model.*``.
Bridge, trainer and command line see the same runs this way.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from vllm_batch import ids, model_orders, model_registry
from vllm_batch.aggregates import training as rules
from vllm_batch.aggregates.training import Run, RunEvent, RunStatus
from vllm_batch.errors import AlreadyDone, NotFound, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import (
    Recorded,
    TrainingDatasetCreated,
    TrainingPromoted,
    TrainingRequested,
    TrainingRolledBack,
)
from vllm_batch.ids import WorkerId
from vllm_batch.labeling import projects
from vllm_batch.messaging import subjects


class TrainingRuns:
    """Every run by id, oldest first, and every dataset. ``position``: the last sequence taken."""

    def __init__(self) -> None:
        self.position = 0
        self.runs: dict[str, Run] = {}
        self.datasets: dict[str, TrainingDatasetCreated] = {}

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; one that is in already changes nothing."""
        if recorded.seq <= self.position:
            return
        self.position = recorded.seq
        event = recorded.event
        if isinstance(event, TrainingDatasetCreated):
            self.datasets[event.dataset_id] = event
        elif isinstance(event, RunEvent):
            self.runs[event.run_id] = rules.evolve(self.runs.get(event.run_id), recorded)

    def of_project(self, project: str) -> list[Run]:
        """Return a project's runs, oldest first."""
        return [run for run in self.runs.values() if run.requested.project == project]

    def open(self) -> list[Run]:
        """Return the runs that have not ended, oldest first."""
        return [run for run in self.runs.values() if not run.ended]


async def load(store: EventStore) -> TrainingRuns:
    """Return the runs as the log has them now.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    runs = TrainingRuns()
    async for batch in store.read(subjects.ALL_TRAINING):
        for recorded in batch:
            runs.apply(recorded)
    return runs


async def record(
    store: EventStore, said: RunEvent, *, trainer: WorkerId | None = None, by_hand: bool = False
) -> Run:
    """Record what happened to a run; ``trainer``: who says so, where it is one; ``by_hand``: a
    person wants it.

    Raises:
        AlreadyDone, LeaseLost, Rejected: see `aggregates.training.decide`.
    """
    _, run = await append_decided(
        store,
        subjects.aggregate("training", said.run_id),
        rules.evolve,
        lambda state: rules.decide(state, said, trainer=trainer, by_hand=by_hand),
    )
    return run


async def request(store: EventStore, project: str, *, requested_by: str) -> Run:
    """Ask that a project's model be trained on what is validated now.

    Raises:
        NotFound: no such project is configured.
        AlreadyDone: a run of the project has not ended.
    """
    view = (await projects.load(store)).find(project)
    if view is None or view.project.deleted or view.project.configured is None:
        raise NotFound(
            f"project {project} is not configured; `vllm-batch label configure` does that"
        )
    for run in (await load(store)).of_project(project):
        if not run.ended:
            raise AlreadyDone(f"run {run.run_id} of project {project} is {run.status}")
    said = TrainingRequested(
        run_id=ids.new("run_"), project=project, trigger="command", requested_by=requested_by
    )
    return await record(store, said)


async def cancel(store: EventStore, run_id: str, *, requested_by: str) -> Run:
    """End a run that is not trained yet; a trainer that has it is refused its next word and stops.

    Raises:
        NotFound: there is no such run.
        Rejected: it has ended, or is trained already.
    """
    if not ids.is_token(run_id):
        raise NotFound(f"there is no training run {run_id[:80]}")
    _, run = await append_decided(
        store,
        subjects.aggregate("training", run_id),
        rules.evolve,
        lambda state: rules.cancel(state, run_id, requested_by=requested_by),
    )
    return run


async def promote(store: EventStore, run_id: str, *, requested_by: str) -> Run:
    """Let the model of a run answer that was not better, or was rolled back.

    The alias moves first, as in `roll_back`, which restores what it means now.

    Raises:
        NotFound: there is no such run.
        Rejected: it was not measured, is in use, or its model is gone, or is only being loaded now:
            clients must not wait for that.
    """
    run = (await load(store)).runs.get(run_id)
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    if run.prepared is None or run.evaluated is None or run.status not in rules.PROMOTED_BY_HAND:
        raise Rejected(f"run {run_id} is {run.status}: there is nothing to promote")
    alias, measured = run.prepared.alias, run.evaluated
    registry = await model_registry.load(store)
    model, now = registry.find(measured.model), registry.resolve(alias)
    if model is None or model.retired:
        raise Rejected(f"{measured.model} is no longer registered")
    if not model.ready_on:
        with suppress(AlreadyDone):
            await model_orders.load(store, model.name, requested_by=requested_by)
        raise Rejected(f"{model.name} is being loaded; promote it once it is ready")
    if now != model.name:
        await model_orders.alias(
            store, model.name, add=[alias], requested_by=requested_by, force=True
        )
    numbers = msgspec.structs.asdict(measured)
    if now not in {None, model.name}:
        numbers["replaced"] = now
    return await record(store, TrainingPromoted(**numbers), by_hand=True)


async def roll_back(store: EventStore, project: str, *, requested_by: str) -> Run:
    """Let the version answer again that the project's newest promotion replaced.

    The alias moves first: a crash before the event leaves the old version in use, and doing it
    again records it.

    Raises:
        NotFound: nothing was promoted in this project.
        Rejected: the version before is retired, or the alias was moved by somebody else.
    """
    promoted = [
        run for run in (await load(store)).of_project(project) if run.status is RunStatus.PROMOTED
    ]
    if not promoted:
        raise NotFound(f"no promoted model of project {project} is in use")
    run = max(promoted, key=lambda one: one.seq)
    assert run.prepared is not None  # noqa: S101 - a promoted run was prepared
    assert run.promoted is not None  # noqa: S101 - and promoted
    alias, promotion = run.prepared.alias, run.promoted
    now = (await model_registry.load(store)).resolve(alias)
    if now not in {promotion.model, promotion.replaced}:
        raise Rejected(f"{alias} means {now} now, not {promotion.model}: nothing to roll back")
    if now != promotion.replaced:
        await model_orders.alias(
            store, promotion.replaced, add=[alias], requested_by=requested_by, force=True
        )
    said = TrainingRolledBack(
        run_id=run.run_id,
        project=project,
        model=promotion.model,
        restored=promotion.replaced,
        requested_by=requested_by,
    )
    return await record(store, said)
