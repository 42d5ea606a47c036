"""Results out to Label Studio: a push makes them tasks with predictions, each of them once.

Somebody asks for a push (``labeling.push_requested``), or a rule does: a completed batch whose
``metadata.labeling_project`` names a project with ``push_automatically``. Label Studio has no ids
of ours, so each task carries ``data.external_id`` (``<source>/<custom_id>``); what is there already
is looked up first, and a push that broke off is done again from the start without duplicates.
"""

from __future__ import annotations

import structlog

from batch_labelstudio import result_lines
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.label_studio import LabelStudio
from batch_labelstudio.task_mapping import EXTERNAL_ID, Json, Line, Unmappable, task_of
from vllm_batch import ids
from vllm_batch.aggregates import job as job_rules
from vllm_batch.aggregates import labeling as labeling_rules
from vllm_batch.aggregates.labeling import PushEnd
from vllm_batch.errors import (
    AlreadyDone,
    BlobMissing,
    InvalidInput,
    LabelStudioError,
    LabelStudioUnavailable,
    NotFound,
)
from vllm_batch.event_store.protocol import append_decided, fold
from vllm_batch.events import (
    JobCompleted,
    LabelingPushFailed,
    LabelingPushRequested,
    LabelingTasksPushed,
    Recorded,
)
from vllm_batch.labeling import label_config
from vllm_batch.labeling.label_config import LabelConfig
from vllm_batch.messaging import subjects
from vllm_batch.messaging.consumer import Outcome

log = structlog.get_logger(__name__)

PUSHES = "labelstudio-pushes"
COMPLETED_JOBS = "labelstudio-completed-jobs"
METADATA_KEY = "labeling_project"
SKIPPED_WHY_MAX = 10


class _Push:
    """One push at work."""

    def __init__(
        self, label_studio: LabelStudio, asked: LabelingPushRequested, config: LabelConfig
    ) -> None:
        self._api = label_studio
        self._asked = asked
        self._config = config
        self._known: set[str] = set()
        self._created = 0
        self._known_before = 0
        self._predictions = 0
        self._skipped: list[str] = []
        self._skipped_count = 0

    async def run(self, bridge: Bridge) -> LabelingTasksPushed:
        """Push everything; return what came of it."""
        asked = self._asked
        files = await result_lines.files_of(bridge.store, asked.source)
        async for page in self._api.tasks(asked.project, external_id_contains=f"{asked.source}/"):
            self._known |= {str(task["data"].get(EXTERNAL_ID)) for task in page}
        waiting: list[Json] = []
        async for line in result_lines.lines_of(files, bridge.blobs):
            if (task := self._task(line)) is not None:
                waiting.append(task)
            if len(waiting) >= bridge.settings.label_studio_import_tasks:
                await self._import(waiting)
                waiting = []
        if waiting:
            await self._import(waiting)
        return LabelingTasksPushed(
            project=asked.project,
            push_id=asked.push_id,
            source=asked.source,
            created=self._created,
            known=self._known_before,
            predictions=self._predictions,
            skipped=self._skipped_count,
            skipped_why=self._skipped,
        )

    def _task(self, line: Line | str) -> Json | None:
        """Return the task of a line; None if there is none to make."""
        try:
            if isinstance(line, str):
                raise Unmappable(line)
            task = task_of(line, self._config, self._asked.source)
        except Unmappable as error:
            self._skipped_count += 1
            if len(self._skipped) < SKIPPED_WHY_MAX:
                self._skipped.append(str(error))
            return None
        external_id = task["data"][EXTERNAL_ID]
        if external_id in self._known:
            self._known_before += 1
            return None
        self._known.add(external_id)
        return task

    async def _import(self, waiting: list[Json]) -> None:
        counts = await self._api.import_tasks(self._asked.project, waiting)
        self._created += counts["task_count"]
        self._predictions += counts["prediction_count"]


async def run(bridge: Bridge) -> None:
    """Push what is asked for, for ever. For one bridge at a time: two that look up at the same time
    what is there already would make the same task twice."""

    async def push(recorded: Recorded) -> Outcome:
        asked = recorded.event
        assert isinstance(asked, LabelingPushRequested)  # noqa: S101 - asked for below
        await bridge.feed.reached(recorded.seq)
        subject = subjects.of_aggregate(asked)
        state, _ = await fold(bridge.store, subject, labeling_rules.evolve_push)
        if isinstance(state, PushEnd):
            return Outcome.DONE
        try:
            end = await _push(bridge, asked)
        except LabelStudioUnavailable as error:
            log.warning("pushing later", project=asked.project, error=str(error))
            return Outcome.RETRY_LATER
        await append_decided(
            bridge.store,
            subject,
            labeling_rules.evolve_push,
            lambda state: labeling_rules.finish_push(state, end),
        )
        log.info("pushed", project=asked.project, source=asked.source, end=end.TYPE)
        return Outcome.DONE

    await bridge.consume(PUSHES, [subjects.every(LabelingPushRequested)], push)


async def ask_by_rule(bridge: Bridge) -> None:
    """Ask for a push where a rule says so, for ever."""

    async def on_completed(recorded: Recorded) -> Outcome:
        ended = recorded.event
        assert isinstance(ended, JobCompleted)  # noqa: S101 - asked for below
        await _ask_by_rule(bridge, ended)
        return Outcome.DONE

    await bridge.consume(COMPLETED_JOBS, [subjects.every(JobCompleted)], on_completed)


async def _push(bridge: Bridge, asked: LabelingPushRequested) -> PushEnd:
    """Raises LabelStudioUnavailable; every other reason ends the push."""
    project = await _project(bridge, asked.project)
    try:
        if bridge.label_studio is None:
            raise NotFound("no Label Studio is set; set VLLM_BATCH_LABEL_STUDIO_URL")
        if project is None or project.configured is None or project.deleted:
            raise NotFound(
                f"project {asked.project} is not configured; see `vllm-batch label configure`"
            )
        xml = project.label_config
        if not xml and (found := await bridge.label_studio.project(asked.project)):
            xml = found["label_config"]
        config = label_config.parse(xml)
        return await _Push(bridge.label_studio, asked, config).run(bridge)
    except LabelStudioUnavailable:
        raise
    except (NotFound, InvalidInput, LabelStudioError, BlobMissing) as error:
        return LabelingPushFailed(
            project=asked.project, push_id=asked.push_id, source=asked.source, reason=str(error)
        )


async def _project(bridge: Bridge, name: str) -> labeling_rules.Project | None:
    """Return a project as the log has it now; what the bridge has heard so far may be behind what
    it is to act on."""
    subject = subjects.aggregate("labeling", name)
    project, _ = await fold(bridge.store, subject, labeling_rules.evolve)
    return project


async def _ask_by_rule(bridge: Bridge, ended: JobCompleted) -> None:
    job, _ = await fold(bridge.store, subjects.job(ended.job_id), job_rules.evolve)
    name = ((job.submitted.metadata or {}) if job else {}).get(METADATA_KEY, "")
    project = await _project(bridge, name) if name else None
    if project is None or project.deleted or not project.configured:
        return
    if not project.configured.push_automatically:
        return
    asked = LabelingPushRequested(
        project=name,
        push_id=ids.derived("push_", name, ended.job_id),
        source=ended.job_id,
        requested_by="rule",
    )
    try:
        await append_decided(
            bridge.store,
            subjects.of_aggregate(asked),
            labeling_rules.evolve_push,
            lambda state: labeling_rules.request_push(state, asked),
        )
    except AlreadyDone:
        return
