"""What validation said, written back to the task where the project asks for it.

Label Studio's community edition shows a task's ``meta`` beside its data, and changing it sends no
webhook. Ours is its key ``vllm_batch``: by annotation, ``validated`` or ``flagged`` with reasons.
"""

from __future__ import annotations

from typing import Any

import structlog

from batch_labelstudio.bridge import Bridge
from vllm_batch.aggregates.annotation import Annotation
from vllm_batch.errors import LabelStudioError, LabelStudioUnavailable
from vllm_batch.events import AnnotationFlagged, AnnotationValidated, Recorded
from vllm_batch.messaging import subjects
from vllm_batch.messaging.consumer import Outcome

log = structlog.get_logger(__name__)

DURABLE = "labelstudio-verdicts"
META_KEY = "vllm_batch"


async def run(bridge: Bridge) -> None:
    """Write verdicts back, for ever."""
    wanted = [subjects.every(AnnotationValidated), subjects.every(AnnotationFlagged)]

    async def handle(recorded: Recorded) -> Outcome:
        verdict = recorded.event
        assert isinstance(verdict, AnnotationValidated | AnnotationFlagged)  # noqa: S101
        await bridge.feed.reached(recorded.seq)
        view = bridge.feed.projects.find(verdict.project)
        configured = view.project.configured if view else None
        if view is None or configured is None or not configured.write_back:
            return Outcome.DONE
        annotation = view.annotations[verdict.annotation]
        if bridge.label_studio is None or annotation.deleted or annotation.written is None:
            return Outcome.DONE
        task_id = annotation.written.task
        try:
            task = await bridge.label_studio.task(task_id)
            if task is not None:
                meta = {**(task["meta"] or {}), META_KEY: verdicts(view.of_task(task_id))}
                await bridge.label_studio.write_meta(task_id, meta)
        except LabelStudioUnavailable:
            return Outcome.RETRY_LATER
        except LabelStudioError as error:  # it will not take it the next time either
            log.warning("a verdict is not written back", task=task_id, why=str(error))
            return Outcome.REJECT
        return Outcome.DONE

    await bridge.consume(DURABLE, wanted, handle)


def verdicts(annotations: dict[str, Annotation]) -> dict[str, Any]:
    """Return what is written for a task: its annotations' verdicts, where there are any."""
    found: dict[str, Any] = {}
    for annotation_id, annotation in annotations.items():
        match annotation.verdict:
            case AnnotationValidated():
                found[annotation_id] = {"verdict": "validated"}
            case AnnotationFlagged(reasons=reasons, details=details):
                found[annotation_id] = {
                    "verdict": "flagged", "reasons": list(reasons), "details": list(details),
                }  # fmt: skip
    return found
