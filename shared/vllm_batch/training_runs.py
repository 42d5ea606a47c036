"""Training runs, folded from the log, and what people may ask of them.

Reads ``training.>``; appends ``training.*`` and, to roll back, ``model.aliased``. Bridge, trainer
and command line see the same runs this way.
"""

from __future__ import annotations

from vllm_batch import ids, model_orders, model_registry
from vllm_batch.aggregates import training as rules
from vllm_batch.aggregates.training import Run, RunEvent, RunStatus
from vllm_batch.errors import AlreadyDone, NotFound, Rejected
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events import (
    Recorded,
    TrainingDatasetCreated,
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


async def record(store: EventStore, said: RunEvent, *, trainer: WorkerId | None = None) -> Run:
    """Record what happened to a run; ``trainer``: who says so, where it is one.

    Raises:
        AlreadyDone, LeaseLost, Rejected: see `aggregates.training.decide`.
    """
    _, run = await append_decided(
        store,
        subjects.aggregate("training", said.run_id),
        rules.evolve,
        lambda state: rules.decide(state, said, trainer=trainer),
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
    run = promoted[-1]
    assert run.prepared is not None  # noqa: S101 - a promoted run was prepared
    assert run.evaluated is not None  # noqa: S101 - and evaluated
    alias, measured = run.prepared.alias, run.evaluated
    now = (await model_registry.load(store)).resolve(alias)
    if now not in {measured.model, measured.replaced}:
        raise Rejected(f"{alias} means {now} now, not {measured.model}: nothing to roll back")
    if now != measured.replaced:
        await model_orders.alias(
            store, measured.replaced, add=[alias], requested_by=requested_by, force=True
        )
    said = TrainingRolledBack(
        run_id=run.run_id,
        project=project,
        model=measured.model,
        restored=measured.replaced,
        requested_by=requested_by,
    )
    return await record(store, said)
