"""Validates what annotators hand in, as soon as the log has it, each version once.

What is open follows from the log alone: a task is open while an annotation of it has no verdict on
its present version, or one that the project's label config of now contradicts. A new annotation
also changes what is to be said of the task's others; those are judged first and the new one last,
so that a crash in between leaves the task open. Any number of bridges may do this: what one has
said already, the rules do not let another say again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import structlog

from batch_labelstudio import judge, results
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.project_config import config_of
from batch_labelstudio.validation.rules import Findings, Handed, Limits, ModelOpinion, examine
from vllm_batch.aggregates import annotation as annotation_rules
from vllm_batch.aggregates.annotation import Annotation, Verdict
from vllm_batch.errors import AlreadyDone, BatchError, BridgeUnreachable, InvalidInput
from vllm_batch.event_store.protocol import append_decided
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    AnnotationFlagged,
    AnnotationUpdated,
    AnnotationValidated,
    LabelingProjectConfigured,
    LabelingProjectUpdated,
    Recorded,
)
from vllm_batch.labeling.answers import check
from vllm_batch.labeling.label_config import LabelConfig
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
_AT_ONCE = 1000

Place = tuple[str, str]
"""Project and task."""


async def run(bridge: Bridge) -> None:
    """Validate for ever."""
    await Validation(bridge).run()


class Validation:
    """The tasks that are open, in the order in which they were touched."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._open: dict[Place, None] = {}
        self._changed: dict[str, None] = {}
        self._arrived = asyncio.Event()
        self._limits = Limits(
            bridge.settings.label_agreement_min, bridge.settings.label_confident_score
        )

    async def run(self) -> None:
        """Judge what is open, then what comes."""
        self._bridge.feed.on_event.append(self._hear)
        self._changed |= {view.project.project: None for view in self._bridge.feed.projects.all()}
        while True:
            if not self._open and not self._changed:
                self._arrived.clear()
                await self._arrived.wait()
            while self._changed:
                project = next(iter(self._changed))
                del self._changed[project]
                await self._open_tasks_of(project)
            if not self._open:
                continue
            place = next(iter(self._open))
            del self._open[place]
            try:
                await self._judge_task(*place)
            except BatchError as error:
                log.warning("validated later", project=place[0], task=place[1], why=str(error))
                await self._again(place)
            except Exception:  # the outermost loop of this duty
                log.exception("validation failed", project=place[0], task=place[1])
                await self._again(place)

    async def _again(self, place: Place) -> None:
        self._open[place] = None
        await asyncio.sleep(_RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    def _hear(self, recorded: Recorded) -> None:
        projects = self._bridge.feed.projects
        match recorded.event:
            case (
                AnnotationCreated(project=project, task=task)
                | AnnotationUpdated(project=project, task=task)
            ):
                self._open[project, task] = None
            case AnnotationDeleted(project=project, annotation=annotation_id):
                view = projects.find(project)
                gone = view.annotations[annotation_id].written if view else None
                if gone is not None:
                    self._open[project, gone.task] = None
            case (
                LabelingProjectConfigured(project=project) | LabelingProjectUpdated(project=project)
            ):
                self._changed[project] = None
        if self._open or self._changed:
            self._arrived.set()

    async def _open_tasks_of(self, project: str) -> None:
        view = self._bridge.feed.projects.find(project)
        if view is None:
            return
        try:
            config = config_of(view)
        except (BridgeUnreachable, InvalidInput):
            return
        for number, (_, annotation) in enumerate(list(view.present()), start=1):
            if annotation.written is not None and is_open(annotation, config):
                self._open[project, annotation.written.task] = None
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # deliveries are waiting, and for no longer than a second

    async def _judge_task(self, project: str, task: str) -> None:
        view = self._bridge.feed.projects.find(project)
        if view is None or view.project.deleted or not (annotations := view.of_task(task)):
            return
        try:
            config = config_of(view)
        except (BridgeUnreachable, InvalidInput):
            log.info("no label config yet, nothing to validate by", project=project)
            return
        data, opinion = await self._task(view, task)
        handed = {
            annotation_id: await self._handed(annotation)
            for annotation_id, annotation in annotations.items()
        }
        for annotation_id in sorted(annotations, key=lambda one: annotations[one].verdict is None):
            others = [other for other_id, other in handed.items() if other_id != annotation_id]
            findings = examine(
                config, handed[annotation_id], others,
                data=data, opinion=opinion, limits=self._limits,
            )  # fmt: skip
            await self._ask_judge(view, config, handed[annotation_id], data, findings)
            await self._say(project, annotation_id, annotations[annotation_id], findings)

    async def _task(
        self, view: ProjectView, task: str
    ) -> tuple[dict[str, Any] | None, ModelOpinion | None]:
        """Return a task's data, and the prediction of the project's model, else the newest."""
        label_studio = self._bridge.label_studio
        found = await label_studio.task(task) if label_studio else None
        if found is None:
            return None, None
        version = self._bridge.models.version_for(view)
        opinions = list(_opinions(found.get("predictions") or []))
        newest = sorted(opinions, key=lambda one: (one.model_version == version, one.created_at))
        return found["data"], newest[-1] if newest else None

    async def _handed(self, annotation: Annotation) -> Handed:
        written = annotation.written
        assert written is not None  # noqa: S101 - `of_task` yields what is there
        return Handed(
            annotator=written.completed_by,
            result=await results.of(written, self._bridge.blobs),
            was_cancelled=written.was_cancelled,
            ground_truth=written.ground_truth,
        )

    async def _ask_judge(
        self,
        view: ProjectView,
        config: LabelConfig,
        mine: Handed,
        data: dict[str, Any] | None,
        findings: Findings,
    ) -> None:
        """Ask the project's judge, if it has one and nothing else speaks against it."""
        configured = view.project.configured
        if configured is None or configured.judge_model is None or data is None:
            return
        if findings.reasons or mine.ground_truth:
            return
        objection = await judge.objection(
            self._bridge.predictor,
            configured.judge_model,
            config=config,
            prompt=configured.prompt,
            data=data,
            result=mine.result,
            seconds=self._bridge.settings.label_predict_seconds,
        )
        if objection:
            findings.add("judge", f"{configured.judge_model}: {objection}")

    async def _say(
        self, project: str, annotation_id: str, annotation: Annotation, findings: Findings
    ) -> None:
        assert annotation.written is not None  # noqa: S101 - `of_task` yields what is there
        known: dict[str, Any] = {
            "project": project,
            "annotation": annotation_id,
            "version": annotation.written.version,
            "agreement": findings.agreement,
            "model_version": findings.model_version,
            "model_agrees": findings.model_agrees,
        }
        verdict: Verdict = AnnotationValidated(**known)
        if findings.reasons:
            verdict = AnnotationFlagged(**known, reasons=findings.reasons, details=findings.details)
        try:
            await append_decided(
                self._bridge.store,
                subjects.of_aggregate(verdict),
                annotation_rules.evolve,
                partial(annotation_rules.judge, said=verdict),
            )
        except AlreadyDone as reason:
            log.debug("nothing to say", annotation=annotation_id, why=str(reason))


def is_open(annotation: Annotation, config: LabelConfig) -> bool:
    """Tell whether an annotation is to be judged, for the first time or again."""
    written, verdict = annotation.written, annotation.verdict
    if verdict is None or written is None:
        return True
    if written.was_cancelled or written.result_blob is not None:
        return False
    was_unfit = isinstance(verdict, AnnotationFlagged) and "schema" in verdict.reasons
    return was_unfit != bool(check(config, written.result))


def _opinions(predictions: list[Any]) -> Iterator[ModelOpinion]:
    """Yield what can be compared: Label Studio stores whatever it is given as a prediction."""
    for one in predictions:
        with suppress(msgspec.ValidationError):
            yield msgspec.convert(one, ModelOpinion)
