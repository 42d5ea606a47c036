"""Labeling projects with their annotations, folded from the log.

Reads ``annotation.>`` and what ``labeling.>`` says of projects; writes nothing. Bridge, admin API
and command line see the same projects this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from vllm_batch.aggregates import annotation as annotation_rules
from vllm_batch.aggregates import labeling as labeling_rules
from vllm_batch.aggregates.annotation import Annotation, Written
from vllm_batch.aggregates.labeling import Project, ProjectEvent
from vllm_batch.event_store import EventStore
from vllm_batch.events import AnnotationFlagged, AnnotationValidated, Recorded
from vllm_batch.events.annotation import AnnotationEvent
from vllm_batch.messaging import subjects

SUBJECTS = [subjects.ALL_ANNOTATIONS, *(subjects.every(cls) for cls in get_args(ProjectEvent))]


Found = TypeVar("Found")


@dataclass(slots=True)
class ProjectView:
    """A project and every annotation of it that was ever seen, by Label Studio's id.

    What it returns of its annotations is worked out once per change: do not change it.
    """

    project: Project
    annotations: dict[str, Annotation] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)
    _of_task: dict[str, set[str]] = field(default_factory=dict, repr=False)

    def set(self, annotation_id: str, annotation: Annotation) -> None:
        """Take in what an annotation is now."""
        self.annotations[annotation_id] = annotation
        self._kept.clear()
        if annotation.written is not None:
            self._of_task.setdefault(annotation.written.task, set()).add(annotation_id)

    def copy(self) -> ProjectView:
        """Return the project as it is now, for another thread."""
        return ProjectView(self.project, dict(self.annotations))

    def present(self) -> Iterator[tuple[str, Annotation]]:
        """Yield (id, annotation) of those that are not deleted."""
        for annotation_id, annotation in self.annotations.items():
            if not annotation.deleted and annotation.written is not None:
                yield annotation_id, annotation

    def of_task(self, task: str) -> dict[str, Annotation]:
        """Return the annotations of one task that are not deleted."""
        found = {i: self.annotations[i] for i in sorted(self._of_task.get(task, ()))}
        return {
            annotation_id: annotation
            for annotation_id, annotation in found.items()
            if not annotation.deleted and annotation.written and annotation.written.task == task
        }

    def ground_truth(self) -> dict[str, Annotation]:
        """Return the annotations that are marked as ground truth."""
        return self._keep(
            "ground_truth",
            lambda: {i: a for i, a in self.present() if a.written and a.written.ground_truth},
        )

    def truths(self) -> dict[str, Written]:
        """Return what is true by task: of several truths about one the newest, no skipped ones."""

        def newest() -> dict[str, Written]:
            marked = (a.written for a in self.ground_truth().values() if a.written)
            usable = (written for written in marked if not written.was_cancelled)
            return {one.task: one for one in sorted(usable, key=lambda one: one.version)}

        return self._keep("truths", newest)

    def validated(self) -> dict[str, Annotation]:
        """Return the annotations whose present version nothing speaks against."""
        return self._keep(
            "validated",
            lambda: {i: a for i, a in self.present() if isinstance(a.verdict, AnnotationValidated)},
        )

    def flagged(self) -> dict[str, Annotation]:
        """Return the annotations whose present version a person should look at."""
        return self._keep(
            "flagged",
            lambda: {i: a for i, a in self.present() if isinstance(a.verdict, AnnotationFlagged)},
        )

    def _keep(self, name: str, find: Callable[[], Found]) -> Found:
        if name not in self._kept:
            self._kept[name] = find()
        found: Found = self._kept[name]
        return found


class Projects:
    """All labeling projects by Label Studio's id. ``position``: the last sequence folded in."""

    def __init__(self) -> None:
        self.views: dict[str, ProjectView] = {}
        self.position = 0

    def find(self, project: str) -> ProjectView | None:
        """Return a project, deleted ones too."""
        return self.views.get(project)

    def all(self) -> list[ProjectView]:
        """Return the projects that are not deleted."""
        return [view for view in self.views.values() if not view.project.deleted]

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in; one that is in already changes nothing."""
        event = recorded.event
        self.position = max(self.position, recorded.seq)
        if isinstance(event, ProjectEvent):
            view = self._view(event.project)
            labeling_rules.evolve(view.project, recorded)
        elif isinstance(event, AnnotationEvent):
            view = self._view(event.project)
            before = view.annotations.get(event.annotation)
            if before is None or recorded.seq > before.seq:
                view.set(event.annotation, annotation_rules.evolve(before, recorded))

    def _view(self, project: str) -> ProjectView:
        return self.views.setdefault(project, ProjectView(Project(project)))


async def load(store: EventStore) -> Projects:
    """Return the projects as the log has them now.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    projects = Projects()
    await catch_up(store, projects)
    return projects


async def catch_up(store: EventStore, projects: Projects) -> None:
    """Have ``projects`` take in what the log has since. Not for two at the same time.

    Raises:
        EventStoreUnavailable: the log does not answer.
    """
    position = await store.last_sequence()
    if position == projects.position:
        return
    found: list[Recorded] = []
    for subject in SUBJECTS:
        async for batch in store.read(subject, after=projects.position):
            found.extend(recorded for recorded in batch if recorded.seq <= position)
    for recorded in sorted(found, key=lambda recorded: recorded.seq):
        projects.apply(recorded)
    projects.position = position
