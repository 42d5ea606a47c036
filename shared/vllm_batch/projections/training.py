"""Read models ``training_run`` and ``training_dataset``. A run's status is that of the rules."""

from __future__ import annotations

from typing import get_args

import msgspec

from vllm_batch.aggregates.training import STATUS_AFTER, RunEvent
from vllm_batch.errors import ProjectionError
from vllm_batch.events import Event, Recorded, TrainingDatasetCreated, TrainingRequested
from vllm_batch.projections.rows import TrainingDatasetRow, TrainingRunRow
from vllm_batch.projections.table import Key, Table

_COLUMNS = frozenset(field.name for field in msgspec.structs.fields(TrainingRunRow))


def evolve(row: TrainingRunRow | None, recorded: Recorded) -> TrainingRunRow:
    """Return the run's row after ``recorded``.

    Raises:
        ProjectionError: it is none of a run's, or the log has no request before it.
    """
    event, now = recorded.event, int(recorded.time.timestamp())
    if isinstance(event, TrainingRequested):
        return TrainingRunRow(
            run_id=event.run_id,
            project=event.project,
            trigger=event.trigger,
            retry_of=event.retry_of,
            attempt=event.attempt,
            status="requested",
            requested_at=now,
            changed_at=now,
        )
    if row is None:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) belongs to no known run")
    if type(event) not in STATUS_AFTER:
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is none of a run's")
    return msgspec.structs.replace(row, changed_at=now, **_changes(event))


def _changes(event: Event) -> dict[str, object]:
    """Return what the event says: its fields are called as the columns. What it leaves open
    (a loss that was not measured in a step) stays as it was."""
    said = msgspec.structs.asdict(event)
    known = {name: said[name] for name in _COLUMNS & said.keys() if said[name] is not None}
    return {**known, "status": STATUS_AFTER[type(event)].value}


def evolve_dataset(_: TrainingDatasetRow | None, recorded: Recorded) -> TrainingDatasetRow:
    """Return the dataset's row: the event has all of it.

    Raises:
        ProjectionError: the event is none of a dataset's.
    """
    event = recorded.event
    if not isinstance(event, TrainingDatasetCreated):
        raise ProjectionError(f"event {recorded.seq} ({event.TYPE}) is none of a dataset's")
    return TrainingDatasetRow(
        created_at=int(recorded.time.timestamp()), **msgspec.structs.asdict(event)
    )


def _keys(event: Event) -> list[Key]:
    return [event.aggregate_id()]


TABLE = Table(
    name="training_run",
    row=TrainingRunRow,
    key=("run_id",),
    events=get_args(RunEvent),
    first=TrainingRequested,
    keys=_keys,
    evolve=lambda row, recorded, _key: evolve(row, recorded),
)

DATASET_TABLE = Table(
    name="training_dataset",
    row=TrainingDatasetRow,
    key=("dataset_id",),
    events=(TrainingDatasetCreated,),
    first=TrainingDatasetCreated,
    keys=_keys,
    evolve=lambda row, recorded, _key: evolve_dataset(row, recorded),
)
