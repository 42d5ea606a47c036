"""The rules of a labeling project, and of a push of results into it.

A project is whatever Label Studio says it is; the rules only keep duplicates and what comes late
from being recorded twice. Its state grows with its tasks, so `evolve` changes it in place.

A push: (none) ──request──► REQUESTED ──finish──► pushed or failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from vllm_batch.errors import AlreadyDone, NotFound
from vllm_batch.events import (
    LabelingAccuracyMeasured,
    LabelingProjectConfigured,
    LabelingProjectConnected,
    LabelingProjectDeleted,
    LabelingProjectUpdated,
    LabelingPushFailed,
    LabelingPushRequested,
    LabelingTasksCreated,
    LabelingTasksDeleted,
    LabelingTasksPushed,
    Recorded,
)

PushEnd = LabelingTasksPushed | LabelingPushFailed
Push = LabelingPushRequested | PushEnd


@dataclass(slots=True)
class Project:
    """A project as the log has it. ``version``: the ``updated_at`` of title and label config."""

    project: str
    seq: int = 0
    title: str = ""
    label_config: str = ""
    version: datetime | None = None
    configured: LabelingProjectConfigured | None = None
    connected: LabelingProjectConnected | None = None
    tasks: set[str] = field(default_factory=set)
    deleted_tasks: set[str] = field(default_factory=set)
    deleted: bool = False
    measured: list[LabelingAccuracyMeasured] = field(default_factory=list)
    measured_at: list[datetime] = field(default_factory=list)


ProjectEvent = (
    LabelingProjectConfigured
    | LabelingProjectConnected
    | LabelingProjectUpdated
    | LabelingProjectDeleted
    | LabelingTasksCreated
    | LabelingTasksDeleted
    | LabelingAccuracyMeasured
)


def evolve(state: Project | None, recorded: Recorded) -> Project:
    """Bring the project up to ``recorded``, in place; one that is in already changes nothing."""
    event = recorded.event
    if not isinstance(event, ProjectEvent):
        raise ValueError(f"event {recorded.seq} is none of a labeling project's")
    state = state or Project(event.project)
    if recorded.seq <= state.seq:
        return state
    state.seq = recorded.seq
    match event:
        case LabelingProjectConfigured():
            state.configured = event
            state.title = state.title or event.title
            state.label_config = state.label_config or event.label_config
        case LabelingProjectConnected():
            state.connected = event
        case LabelingProjectUpdated(title=title, label_config=config, version=version):
            state.title, state.label_config, state.version = title, config, version
            state.deleted = False
        case LabelingProjectDeleted():
            state.deleted, state.connected = True, None
            state.deleted_tasks |= state.tasks
            state.tasks.clear()
        case LabelingTasksCreated(tasks=tasks):
            state.tasks.update(tasks)
            state.deleted_tasks.difference_update(tasks)
        case LabelingTasksDeleted(tasks=tasks):
            state.tasks.difference_update(tasks)
            state.deleted_tasks.update(tasks)
        case LabelingAccuracyMeasured():
            state.measured.append(event)
            state.measured_at.append(recorded.time)
    return state


def tasks_created(
    state: Project | None, project: str, tasks: Iterable[str], *, revive: bool = False
) -> LabelingTasksCreated:
    """Return the event for those of ``tasks`` that are new.

    ``revive``: tasks that were deleted too; for who has asked Label Studio since.

    Raises:
        AlreadyDone: there are none.
    """
    known = state.tasks if state else set()
    gone = state.deleted_tasks if state and not revive else set()
    new = [task for task in dict.fromkeys(tasks) if task not in known and task not in gone]
    if not new:
        raise AlreadyDone(f"project {project}: no new task")
    return LabelingTasksCreated(project=project, tasks=new)


def tasks_deleted(
    state: Project | None, project: str, tasks: Iterable[str]
) -> LabelingTasksDeleted:
    """Return the event for those of ``tasks`` that are not known as deleted.

    Raises:
        AlreadyDone: there are none.
    """
    gone = state.deleted_tasks if state else set()
    new = [task for task in dict.fromkeys(tasks) if task not in gone]
    if not new:
        raise AlreadyDone(f"project {project}: these tasks are deleted")
    return LabelingTasksDeleted(project=project, tasks=new)


def update(state: Project | None, said: LabelingProjectUpdated) -> LabelingProjectUpdated:
    """Return ``said`` if it tells anything new.

    Raises:
        AlreadyDone: title and label config are known, or newer ones are.
    """
    if state is None or (state.deleted and _is_newer(state, said)):
        return said
    same = (said.title, said.label_config) == (state.title, state.label_config)
    if same or state.deleted or not _is_newer(state, said):
        raise AlreadyDone(f"project {said.project} is known like that, or newer")
    return said


def _is_newer(state: Project, said: LabelingProjectUpdated) -> bool:
    return state.version is None or said.version is None or said.version > state.version


def delete(state: Project | None, project: str) -> LabelingProjectDeleted:
    """Return the event of a project's end.

    Raises:
        AlreadyDone: it is deleted, or nobody knows it.
    """
    if state is None or state.deleted:
        raise AlreadyDone(f"project {project} is deleted or unknown")
    return LabelingProjectDeleted(project=project)


def connect(state: Project | None, said: LabelingProjectConnected) -> LabelingProjectConnected:
    """Return ``said`` unless the project is connected like that.

    Raises:
        AlreadyDone: it is.
    """
    if state is not None and state.connected == said:
        raise AlreadyDone(f"project {said.project} is connected")
    return said


def evolve_push(_: Push | None, recorded: Recorded) -> Push:
    """Return the push's latest event, which is all there is to know of it."""
    event = recorded.event
    if not isinstance(event, Push):
        raise ValueError(f"event {recorded.seq} is none of a push's")
    return event


def request_push(state: Push | None, said: LabelingPushRequested) -> LabelingPushRequested:
    """Return ``said``.

    Raises:
        AlreadyDone: this push was asked for before.
    """
    if state is not None:
        raise AlreadyDone(f"push {said.push_id} was asked for before")
    return said


def finish_push(state: Push | None, said: PushEnd) -> PushEnd:
    """Return ``said`` if the push is open.

    Raises:
        NotFound: nobody asked for it.
        AlreadyDone: it has ended.
    """
    if state is None:
        raise NotFound(f"there is no push {said.push_id}")
    if isinstance(state, PushEnd):
        raise AlreadyDone(f"push {said.push_id} has ended")
    return said
