"""Carries out what API and command line ask of the bridge; see `vllm_batch.labeling.control`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog
from nats.aio.msg import Msg

from batch_labelstudio import accuracy, agreement, translation
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.label_studio import LabelStudio
from batch_labelstudio.project_config import config_of
from batch_labelstudio.recorder import Recorder
from batch_labelstudio.training import preparing
from vllm_batch import tasks
from vllm_batch.errors import BatchError, NotFound, Rejected
from vllm_batch.labeling.control import (
    QUEUE,
    Command,
    ExportDataset,
    FindTemplate,
    MarkGroundTruth,
    MeasureAccuracy,
    Reply,
    ReportAgreement,
)
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.labeling.templates import template_of
from vllm_batch.messaging import subjects

log = structlog.get_logger(__name__)


async def run(bridge: Bridge) -> None:
    """Carry out commands, for ever."""
    orders = Orders(bridge)
    client = bridge.store.connection.client
    subscription = await client.subscribe(subjects.LABELING_CONTROL, QUEUE, cb=orders.receive)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if not client.is_closed:
            await subscription.unsubscribe()
        await orders.stop()


class Orders:
    """Each command runs on its own: a long measurement holds up nothing."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._recorder = Recorder(bridge.store, bridge.blobs, bridge.feed)
        self._running: set[asyncio.Task[None]] = set()

    async def receive(self, message: Msg) -> None:
        """Start what a message asks for."""
        task = asyncio.create_task(self._answer(message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """End what runs."""
        await tasks.end(*self._running)

    async def _answer(self, message: Msg) -> None:
        try:
            command = msgspec.json.decode(message.data, type=Command)
            reply = Reply(data=await self.carry_out(command))
        except msgspec.DecodeError as error:
            reply = Reply(code=Rejected.code, message=f"This is no command: {error}")
        except BatchError as error:
            reply = Reply(code=error.code, message=str(error), retryable=error.retryable)
        except Exception:  # the outermost loop of this duty: the asker is told, not left waiting
            log.exception("a command failed")
            reply = Reply(code=BatchError.code, message="The bridge had an error; see its log.")
        await message.respond(msgspec.json.encode(reply))

    async def carry_out(self, command: Command) -> dict[str, Any]:
        """Return what a command comes to.

        Raises:
            BatchError: it cannot be carried out.
        """
        if isinstance(command, FindTemplate):
            return await self._template(command)
        view = self._bridge.feed.projects.find(command.project)
        if view is None or view.project.deleted:
            raise NotFound(f"there is no project {command.project} that delivers to us")
        match command:
            case MarkGroundTruth():
                return await self._mark(command)
            case MeasureAccuracy():
                return await self._measure(view, command)
            case ReportAgreement():
                # Of many annotations it takes seconds, and deliveries wait for one.
                report = await asyncio.to_thread(agreement.of_project, view.copy(), config_of(view))
                built: dict[str, Any] = msgspec.to_builtins(report)
                return built
            case ExportDataset(format=wanted):
                made = await preparing.export(self._bridge, view, wanted)
                exported: dict[str, Any] = msgspec.to_builtins(made)
                return exported

    async def _template(self, command: FindTemplate) -> dict[str, Any]:
        found = await self._label_studio().project(command.project)
        if found is None:
            raise NotFound(f"Label Studio has no project {command.project} that our token may see")
        return {"template": template_of(found["label_config"], command.wanted)}

    def _label_studio(self) -> LabelStudio:
        if self._bridge.label_studio is None:
            raise Rejected("no Label Studio is configured: set VLLM_BATCH_LABEL_STUDIO_URL")
        return self._bridge.label_studio

    async def _mark(self, command: MarkGroundTruth) -> dict[str, Any]:
        label_studio = self._label_studio()
        before = await label_studio.annotation(command.annotation)
        if before is None or str(before["project"]) != command.project:
            raise NotFound(f"project {command.project} has no annotation {command.annotation}")
        after = await label_studio.request(
            "PATCH",
            f"/api/annotations/{command.annotation}/",
            json={"ground_truth": command.ground_truth},
        )
        # Its webhook says the same; what comes second is no news.
        await self._recorder.record(translation.annotation(command.project, after, "webhook"))
        return {"annotation": command.annotation, "ground_truth": command.ground_truth}

    async def _measure(self, view: ProjectView, command: MeasureAccuracy) -> dict[str, Any]:
        models = self._bridge.models
        wanted = command.model
        model = (models.registry.resolve(wanted) or wanted) if wanted else models.version_for(view)
        if model is None:
            raise Rejected(f"project {command.project} has no model; name one, or configure it")
        truth = await accuracy.truth_of(self._bridge, view)
        measured = await accuracy.measure(
            self._bridge, view, model, truth, requested_by=command.requested_by
        )
        await accuracy.record(self._bridge, measured)
        built: dict[str, Any] = msgspec.to_builtins(measured)
        return built
