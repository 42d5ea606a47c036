"""Label Studio's webhooks for a project: ours is there, as it has to be, and no other of ours.

Label Studio makes one by itself when an ML backend is added, to ``<backend>/webhook`` and without
the secret; it survives the backend. What it would deliver comes by ours, so it is deleted.
"""

from __future__ import annotations

from typing import Any

import structlog

from batch_labelstudio.label_studio import LabelStudio
from batch_labelstudio.recorder import Recorder
from vllm_batch.errors import LabelStudioError, LabelStudioUnavailable
from vllm_batch.events import LabelingProjectConnected
from vllm_batch.labeling import webhook_address
from vllm_batch.labeling.webhook_endpoint import PATH, SECRET_HEADER
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

ML_WEBHOOK_PATH = "/webhook"


async def ensure_connected(
    project: str, label_studio: LabelStudio, recorder: Recorder, settings: Settings
) -> None:
    """Make Label Studio deliver the project's events to us, with the secret. Safe to repeat.

    Raises:
        LabelStudioError: it refuses, or does not answer.
    """
    secret = settings.label_studio_webhook_secret.get_secret_value()
    if not secret:
        log.warning("no webhook secret is set; only the reconciler reads", project=project)
        return
    root = settings.bridge_url.rstrip("/")
    wanted: dict[str, Any] = {
        "url": root + PATH,
        "headers": {SECRET_HEADER: secret},
        "send_payload": True,
        "send_for_all_actions": True,
        "is_active": True,
    }
    ours = None
    for webhook in await label_studio.webhooks(project):
        if webhook["url"] == wanted["url"] and ours is None:
            ours = webhook
        elif webhook["url"] in {wanted["url"], root + ML_WEBHOOK_PATH}:
            await label_studio.delete_webhook(str(webhook["id"]))
            log.info("deleted a second webhook", project=project, url=webhook["url"])
    if ours is None:
        try:
            ours = await label_studio.make_webhook({**wanted, "project": int(project)})
        except LabelStudioUnavailable:
            raise
        except LabelStudioError as error:
            why = webhook_address.refusal(settings.bridge_url)
            raise LabelStudioError(f"{why} ({error})" if why else str(error)) from error
        log.info("made the webhook", project=project, webhook=ours["id"])
    elif any(ours[name] != value for name, value in wanted.items()):
        await label_studio.change_webhook(str(ours["id"]), {**wanted, "actions": []})
        log.info("put the webhook right", project=project, webhook=ours["id"])
    await recorder.record(
        LabelingProjectConnected(project=project, webhook=str(ours["id"]), url=wanted["url"])
    )
