"""Deliveries of Label Studio: taken in at once, worked on afterwards."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from batch_labelstudio import translation
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.recorder import Recorder
from vllm_batch.errors import BlobMissing
from vllm_batch.events import LabelingTasksDeleted, LabelingWebhookReceived, Recorded
from vllm_batch.labeling import deliveries, webhook_endpoint
from vllm_batch.labeling.projects import Projects
from vllm_batch.labeling.webhook_endpoint import WebhookEndpoint
from vllm_batch.messaging import subjects
from vllm_batch.messaging.consumer import Outcome

log = structlog.get_logger(__name__)

DURABLE = "labelstudio-deliveries"

router = APIRouter()


@router.post(webhook_endpoint.PATH)
async def receive(request: Request) -> Response:
    """Record a delivery of Label Studio."""
    bridge: Bridge = request.app.state.bridge
    endpoint = WebhookEndpoint(
        bridge.store,
        bridge.blobs,
        bridge.settings,
        is_connected=lambda: bridge.store.connection.client.is_connected,
    )
    return await endpoint.answer(request)


def _project_of(things: list[dict[str, Any]], projects: Projects) -> str | None:
    """Return the project that the log has a delivery's tasks in: some deletions do not name it."""
    tasks = {str(one.get("id")) for one in things}
    found = (view.project.project for view in projects.all() if tasks & view.project.tasks)
    return next(found, None)


async def run(bridge: Bridge) -> None:
    """Work on recorded deliveries, for ever."""
    recorder = Recorder(bridge.store, bridge.blobs, bridge.feed)

    async def handle(recorded: Recorded) -> Outcome:
        delivery = recorded.event
        assert isinstance(delivery, LabelingWebhookReceived)  # noqa: S101 - asked for below
        try:
            body = await deliveries.body_of(delivery, bridge.blobs)
            project = delivery.project or _project_of(deliveries.things(body), bridge.feed.projects)
            said = translation.said_by(delivery, body, project)
        except (msgspec.ValidationError, BlobMissing) as error:
            log.warning("a delivery says nothing", action=delivery.action, error=str(error))
            return Outcome.REJECT
        for one in said:
            if isinstance(one, LabelingTasksDeleted):
                await recorder.delete_tasks(one.project, one.tasks, "webhook")
            else:
                await recorder.record(one)
        return Outcome.DONE

    await bridge.consume(DURABLE, [subjects.every(LabelingWebhookReceived)], handle)
