"""Making up for deliveries that were missed: Label Studio's API compared with the log.

The bridge that leads walks every project the log knows: at the start, every
``label_studio_reconcile_seconds``, and at once when NATS or Label Studio is back or a project was
configured; that project's webhook, title and label config do not wait for the walk. What is found
is recorded like what webhooks say, so the two may meet anywhere.

Nothing is taken for deleted because a list lacks it: pages shift while they are read. Each missing
thing is asked for by its id.
"""

from __future__ import annotations

import asyncio
import random

import msgspec
import structlog

from batch_labelstudio import translation
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.connection import ensure_connected
from batch_labelstudio.label_studio import Json, LabelStudio
from batch_labelstudio.recorder import Recorder
from vllm_batch import tasks
from vllm_batch.errors import (
    BatchError,
    EventStoreError,
    LabelStudioError,
    LabelStudioUnavailable,
)
from vllm_batch.events import (
    AnnotationDeleted,
    LabelingProjectConfigured,
    LabelingProjectDeleted,
    LabelingTasksCreated,
    Recorded,
)
from vllm_batch.labeling.projects import ProjectView

log = structlog.get_logger(__name__)

RETRY_SECONDS = 2.0
DELETED_MAX = 5000  # ids in one event, as many as Label Studio deletes in one delivery


class Reconciler:
    """Compares one project at a time."""

    def __init__(self, bridge: Bridge, label_studio: LabelStudio) -> None:
        self._bridge = bridge
        self._api = label_studio
        self._recorder = Recorder(bridge.store, bridge.blobs, bridge.feed)
        self._connecting = asyncio.Lock()

    async def connect(self, project: str) -> None:
        """See to it that Label Studio delivers a project's events, if it is configured.

        Raises:
            LabelStudioError: it does not answer, or refuses.
        """
        view = self._bridge.feed.projects.find(project)
        if view is not None and view.project.configured and not view.project.deleted:
            async with self._connecting:
                await ensure_connected(project, self._api, self._recorder, self._bridge.settings)

    async def learn(self, project: str) -> None:
        """Record what Label Studio says of a project itself: title and label config.

        Raises:
            LabelStudioError: it does not answer, or refuses.
            EventStoreUnavailable: the log does not answer.
        """
        if (found := await self._api.project(project)) is not None:
            await self._recorder.record(translation.project_state(found))

    async def reconcile_all(self) -> None:
        """Compare every project the log knows. One that cannot be compared holds up no other.

        Raises:
            LabelStudioUnavailable: it does not answer.
            EventStoreUnavailable: the log does not answer.
        """
        for view in self._bridge.feed.projects.all():
            try:
                await self.reconcile(view)
            except (LabelStudioUnavailable, EventStoreError):
                raise
            except (BatchError, msgspec.ValidationError, KeyError) as error:
                project = view.project.project
                log.warning("cannot reconcile a project", project=project, error=repr(error))

    async def reconcile(self, view: ProjectView) -> None:
        """Record everything of a project that the log does not know."""
        project = view.project.project
        # Taken before the walk: what comes meanwhile is not missing.
        known_tasks = set(view.project.tasks)
        annotations = {annotation_id: a.written for annotation_id, a in view.present()}
        found = await self._api.project(project)
        if found is None:
            await self._project_gone(project, set(annotations))
            return
        try:
            await self.connect(project)
        except LabelStudioUnavailable:
            raise
        except LabelStudioError as error:  # where no webhook comes, the walk is all there is
            log.warning("no webhooks come; only the walk reads", project=project, why=str(error))
        await self._recorder.record(translation.project_state(found))
        seen_tasks: set[str] = set()
        seen_annotations: set[str] = set()
        async for page in self._api.tasks(project):
            seen_tasks |= {str(task["id"]) for task in page}
            seen_annotations |= await self._take_page(view, page)
        await self._tasks_gone(project, known_tasks - seen_tasks)
        for annotation_id, written in annotations.items():
            if annotation_id in seen_annotations or (written and written.task not in seen_tasks):
                continue
            if await self._api.annotation(annotation_id) is None:
                await self._annotation_gone(project, annotation_id)

    async def _take_page(self, view: ProjectView, page: list[Json]) -> set[str]:
        """Record what is new on a page; return the ids of its annotations."""
        project = view.project.project
        gone = view.project.deleted_tasks & {str(task["id"]) for task in page}
        returned = {task for task in gone if await self._api.task(task) is not None}
        found = [str(task["id"]) for task in page]
        await self._recorder.record(
            LabelingTasksCreated(project=project, tasks=[t for t in found if t not in gone])
        )
        if returned:
            await self._recorder.record(
                LabelingTasksCreated(project=project, tasks=sorted(returned)), revive=True
            )
        seen: set[str] = set()
        for task in page:
            for one in task["annotations"]:
                seen.add(str(one["id"]))
                try:
                    said = translation.annotation(project, one, "reconciler")
                except msgspec.ValidationError as error:
                    log.warning("an annotation is none", annotation=one["id"], error=str(error))
                    continue
                known = view.annotations.get(said.annotation)
                if known is None or not known.deleted:
                    await self._recorder.record(said)
                elif await self._api.annotation(said.annotation) is not None:
                    await self._recorder.record(said, revive=True)
        return seen

    async def _tasks_gone(self, project: str, missing: set[str]) -> None:
        gone = [task for task in sorted(missing, key=int) if await self._api.task(task) is None]
        for several in (gone[n : n + DELETED_MAX] for n in range(0, len(gone), DELETED_MAX)):
            await self._recorder.delete_tasks(project, several, "reconciler")
        if gone:
            log.info("tasks were deleted unseen", project=project, tasks=len(gone))

    async def _annotation_gone(self, project: str, annotation: str) -> None:
        await self._recorder.record(
            AnnotationDeleted(project=project, annotation=annotation, origin="reconciler")
        )

    async def _project_gone(self, project: str, annotations: set[str]) -> None:
        for annotation in sorted(annotations, key=int):
            await self._annotation_gone(project, annotation)
        await self._recorder.record(LabelingProjectDeleted(project=project))
        log.info("a project was deleted", project=project, annotations=len(annotations))


async def run(bridge: Bridge) -> None:
    """Reconcile for ever, where there is a Label Studio. For one bridge at a time."""
    if bridge.label_studio is None:
        log.warning("no Label Studio is set (VLLM_BATCH_LABEL_STUDIO_URL): nothing is reconciled")
        await asyncio.get_running_loop().create_future()
        return
    reconciler = Reconciler(bridge, bridge.label_studio)
    wake = asyncio.Event()
    new: asyncio.Queue[str] = asyncio.Queue()

    def configured(recorded: Recorded) -> None:
        if isinstance(event := recorded.event, LabelingProjectConfigured):
            new.put_nowait(event.project)
            wake.set()

    async def walk() -> None:
        while True:
            wake.clear()
            seconds = await _pass(reconciler, bridge.settings.label_studio_reconcile_seconds)
            try:
                async with asyncio.timeout(seconds):
                    await wake.wait()
            except TimeoutError:
                continue

    bridge.feed.on_event.append(configured)
    bridge.store.connection.on_reconnect.add(wake.set)
    try:
        await tasks.first_to_end(walk(), _connect(reconciler, new))
    finally:
        bridge.feed.on_event.remove(configured)
        bridge.store.connection.on_reconnect.discard(wake.set)


async def _connect(reconciler: Reconciler, new: asyncio.Queue[str]) -> None:
    """Connect projects as they are configured. What fails is left to the next pass."""
    while True:
        project = await new.get()
        try:
            await reconciler.connect(project)
            await reconciler.learn(project)
        except BatchError as error:
            log.warning("cannot connect now", project=project, error=str(error))
        except Exception:  # the outermost loop of this duty
            log.exception("duty failed", duty="connecting", project=project)


async def _pass(reconciler: Reconciler, every_seconds: float) -> float:
    """Reconcile once; return the seconds until the next time."""
    try:
        await reconciler.reconcile_all()
    except BatchError as error:
        log.warning("cannot reconcile now", error=str(error))
        every_seconds = min(every_seconds, RETRY_SECONDS)
    except Exception:  # the outermost loop of this duty
        log.exception("duty failed", duty="reconciler")
    return every_seconds * random.uniform(0.9, 1.0)  # noqa: S311 - jitter, not a secret
