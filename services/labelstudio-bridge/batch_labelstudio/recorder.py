"""Recording what Label Studio says: each thing once, however often and in whatever order it comes.

Webhooks and the reconciler say the same things; the rules of the aggregates decide what is news.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from batch_labelstudio.feed import ProjectFeed
from vllm_batch.aggregates import annotation as annotation_rules
from vllm_batch.aggregates import labeling as labeling_rules
from vllm_batch.aggregates.annotation import Annotation
from vllm_batch.aggregates.labeling import Project
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import AlreadyDone, Conflict
from vllm_batch.event_store import EventStore
from vllm_batch.event_store.protocol import append_decided
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    Event,
    LabelingProjectConnected,
    LabelingProjectDeleted,
    LabelingProjectUpdated,
    LabelingTasksCreated,
    LabelingTasksDeleted,
    TrainingRequested,
)
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.messaging import subjects

RESULT_BYTES_MAX = 256 * 1024  # longer ones go to the blob store: an event fits into 1 MiB

Said = (
    AnnotationCreated
    | AnnotationDeleted
    | LabelingTasksCreated
    | LabelingTasksDeleted
    | LabelingProjectUpdated
    | LabelingProjectDeleted
    | LabelingProjectConnected
    | TrainingRequested
)


class Recorder:
    """Appends what is news, and returns when the feed knows it."""

    def __init__(self, store: EventStore, blobs: BlobStore, feed: ProjectFeed) -> None:
        self._store = store
        self._blobs = blobs
        self._feed = feed

    async def record(self, said: Said, *, revive: bool = False) -> bool:
        """Record ``said`` if it is news; returns whether it was.

        ``revive``: Label Studio was asked after the log had it as deleted, and has it.

        Raises:
            EventStoreUnavailable: the log does not answer.
            BlobError: a long result could not be stored.
        """
        view = self._feed.projects.find(said.project)
        try:
            match said:
                case AnnotationCreated():
                    if view and said.task in view.project.deleted_tasks and not revive:
                        return False
                    said = await self._with_short_result(said)
                    await self._annotation(
                        said, view, lambda state: annotation_rules.write(state, said, revive=revive)
                    )
                case AnnotationDeleted():
                    await self._annotation(said, view, partial(annotation_rules.delete, said=said))
                case TrainingRequested():
                    await self._store.append(said, expected=0)
                case _:
                    await self._project(said, view, partial(_decide, said=said, revive=revive))
        except AlreadyDone:
            return False
        except Conflict:
            if not isinstance(said, TrainingRequested):
                raise
            return False
        return True

    async def delete_tasks(self, project: str, tasks: list[str], origin: str) -> None:
        """Record that tasks are gone, and their annotations with them."""
        view = self._feed.projects.find(project)
        gone = set(tasks)
        for annotation_id, annotation in list(view.present()) if view else []:
            if annotation.written and annotation.written.task in gone:
                said = {"project": project, "annotation": annotation_id, "origin": origin}
                await self.record(msgspec.convert(said, AnnotationDeleted))
        await self.record(LabelingTasksDeleted(project=project, tasks=tasks))

    async def _annotation(
        self,
        said: AnnotationCreated | AnnotationDeleted,
        view: ProjectView | None,
        decide: Callable[[Annotation | None], Event],
    ) -> None:
        state = view.annotations.get(said.annotation) if view else None
        known = (state, state.seq) if state else None
        recorded, _ = await append_decided(
            self._store, subjects.of_aggregate(said), annotation_rules.evolve, decide, known=known
        )
        await self._feed.reached(recorded.seq)

    async def _project(
        self, said: Said, view: ProjectView | None, decide: Callable[[Project | None], Event]
    ) -> None:
        known = (view.project, view.project.seq) if view and view.project.seq else None
        recorded, _ = await append_decided(
            self._store, subjects.of_aggregate(said), labeling_rules.evolve, decide, known=known
        )
        await self._feed.reached(recorded.seq)

    async def _with_short_result(self, said: AnnotationCreated) -> AnnotationCreated:
        encoded = msgspec.json.encode(said.result)
        if len(encoded) <= RESULT_BYTES_MAX:
            return said
        key = f"annotations/{said.project}/{said.annotation}/{said.version.timestamp():.6f}"
        await self._blobs.put(key, encoded)
        return msgspec.structs.replace(said, result=[], result_blob=key)


def _decide(state: Project | None, *, said: Said, revive: bool) -> Event:
    match said:
        case LabelingTasksCreated(project=project, tasks=tasks):
            return labeling_rules.tasks_created(state, project, tasks, revive=revive)
        case LabelingTasksDeleted(project=project, tasks=tasks):
            return labeling_rules.tasks_deleted(state, project, tasks)
        case LabelingProjectUpdated():
            return labeling_rules.update(state, said)
        case LabelingProjectDeleted(project=project):
            return labeling_rules.delete(state, project)
        case LabelingProjectConnected():
            return labeling_rules.connect(state, said)
    raise TypeError(f"{said.TYPE} is not said of a project")
