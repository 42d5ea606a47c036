"""Projects, annotations and accuracy in Postgres: what the log says, again after a rebuild."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr
from tests.facts import START, append

from vllm_batch.clock import ManualClock
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    AnnotationFlagged,
    AnnotationUpdated,
    AnnotationValidated,
    LabelingAccuracyMeasured,
    LabelingProjectConfigured,
    LabelingProjectUpdated,
    LabelingTasksCreated,
    LabelingTasksDeleted,
)
from vllm_batch.postgres.connection import connect
from vllm_batch.projections import rebuild
from vllm_batch.projections.runner import Projector
from vllm_batch.settings import Settings

OLD, NEW = (datetime(2026, 1, 2, 3, 4, n, 123_456, UTC) for n in (5, 6))


async def some_history(store: EventStore) -> None:
    """Three annotations: judged and changed again, flagged, gone before it was seen."""
    await append(
        store,
        LabelingProjectConfigured(
            project="7", template="classification", model="sentiment", requested_by="me"
        ),
        LabelingProjectUpdated(project="7", title="Films", label_config="<View/>"),
        LabelingTasksCreated(project="7", tasks=["1", "2", "3"]),
        LabelingTasksDeleted(project="7", tasks=["3"]),
        AnnotationCreated(project="7", annotation="11", task="1", version=OLD),
        AnnotationValidated(project="7", annotation="11", version=OLD, agreement=0.5),
        AnnotationUpdated(project="7", annotation="11", task="1", version=NEW, ground_truth=True),
        AnnotationValidated(project="7", annotation="11", version=OLD),
        AnnotationCreated(project="7", annotation="12", task="2", version=OLD),
        AnnotationFlagged(
            project="7", annotation="12", version=OLD, reasons=["schema"], details=["No choice."]
        ),
        AnnotationDeleted(project="7", annotation="13"),
        LabelingAccuracyMeasured(
            project="7", model_version="sentiment-2", tasks=12, accuracy=0.75, interval_low=0.5,
            interval_high=0.9, macro_f1=0.7, labels=["a", "b"], confusion=[[1, 2], [3, 4]],
            requested_by="me",
        ),
    )  # fmt: skip


async def test_projects_annotations_and_accuracy_are_rows(
    tmp_path: Path, postgres_dsn: str
) -> None:
    settings = Settings(home=tmp_path, postgres_dsn=SecretStr(postgres_dsn))
    store = MemoryEventStore(clock=ManualClock(START))
    await some_history(store)
    for seq in range(1, await store.last_sequence() + 1):  # so each row is loaded and saved again
        await Projector(store, settings).catch_up(seq)
    async with connect(settings) as connection:
        (project,) = await connection.fetch("SELECT * FROM labeling_project")
        changed, flagged, gone = await connection.fetch("SELECT * FROM annotation ORDER BY 2")
        (measured,) = await connection.fetch("SELECT * FROM labeling_accuracy")
    assert (project["title"], project["model"]) == ("Films", "sentiment")
    assert (project["tasks_created"], project["tasks_deleted"]) == (3, 1)
    assert (changed["status"], changed["ground_truth"]) == ("pending", True)
    assert (flagged["status"], flagged["reasons"]) == ("flagged", ["schema"])
    assert (gone["status"], gone["task"]) == ("deleted", None)
    assert (measured["accuracy"], measured["confusion"]) == (0.75, [[1, 2], [3, 4]])
    found = await rebuild.verify(store, settings, progress=lambda _done, _of: None)
    assert found.identical, found.tables
