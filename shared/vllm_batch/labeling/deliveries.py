"""Deliveries of Label Studio: recorded as they come, before anybody works on them.

Label Studio waits one second, never tries again and sends no id. So a delivery is one append, and
its id derives from what it is about: action, ids and ``updated_at``. A long body goes to the blob
store under ``deliveries/<id>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vllm_batch import ids
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import Conflict, InvalidInput
from vllm_batch.event_store import EventStore
from vllm_batch.events import LabelingWebhookReceived
from vllm_batch.labeling.redaction import redacted

INLINE_BYTES_MAX = 128 * 1024  # an event has to fit into a NATS message of 1 MiB

# The names of Label Studio 1.23.2, and others under which clients send the same things.
ACTIONS = {
    name: name
    for name in (
        "TASKS_CREATED", "TASKS_DELETED", "ANNOTATION_CREATED", "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "PROJECT_CREATED", "PROJECT_UPDATED",
        "PROJECT_DELETED", "LABEL_LINK_CREATED", "LABEL_LINK_UPDATED", "LABEL_LINK_DELETED",
        "START_TRAINING",
    )
} | {
    "TASK_CREATED": "TASKS_CREATED",
    "TASK_UPDATED": "TASKS_CREATED",
    "TASK_DELETED": "TASKS_DELETED",
    "ANNOTATION_DELETED": "ANNOTATIONS_DELETED",
}  # fmt: skip

Body = Mapping[str, Any]


def parse(raw: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return action and body; None where it is nothing to us.

    That is an action of another release, or one without what it is about: the webhook was made
    with ``send_payload`` off. What happened is then found by the reconciler.

    Raises:
        InvalidInput: not a JSON object with an action.
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict) or not isinstance(body.get("action"), str):
        raise InvalidInput("The body has to be a JSON object with an 'action'.", param="action")
    action = ACTIONS.get(body["action"])
    if action is None or not (things(body) or project_of(body)):
        return None
    return action, body


def things(body: Body) -> list[dict[str, Any]]:
    """Return what a delivery is about: annotations, else tasks, else label links."""
    for name in ("annotation", "annotations", "task", "tasks", "label_link"):
        found = body.get(name)
        several = found if isinstance(found, list) else [found]
        if objects := [one for one in several if isinstance(one, dict) and "id" in one]:
            return objects
    return []


def project_of(body: Body) -> str | None:
    """Return the project's id; a project in the body, else the one its things name."""
    project = body.get("project")
    if isinstance(project, dict):
        project = project.get("id")
    if project is None:
        project = next((one["project"] for one in things(body) if one.get("project")), None)
    return str(project) if isinstance(project, int) else None


def delivery_id(action: str, body: Body) -> str:
    """Return the id of everything that delivers the same; a request for training has its own."""
    if action == "START_TRAINING":
        return ids.new("dlv_")
    project = body.get("project")
    found = things(body) or [project if isinstance(project, dict) else {"id": project}]
    about = sorted(f"{one.get('id')}@{one.get('updated_at', '')}" for one in found)
    return ids.derived("dlv_", action, project_of(body) or "", *about)


async def record(store: EventStore, blobs: BlobStore, action: str, body: Body) -> bool:
    """Record a delivery without its secrets; returns whether it is new.

    Raises:
        EventStoreUnavailable: the log does not answer.
        BlobError: a long body could not be stored.
    """
    delivery = delivery_id(action, body)
    clean = redacted(dict(body))
    encoded = msgspec.json.encode(clean)
    is_long = len(encoded) > INLINE_BYTES_MAX
    if is_long:
        await blobs.put(_blob_key(delivery), encoded)
    event = LabelingWebhookReceived(
        delivery_id=delivery,
        action=action,
        project=project_of(body),
        body={} if is_long else clean,
        body_blob=_blob_key(delivery) if is_long else None,
    )
    try:
        await store.append(event, expected=0)
    except Conflict:
        return False
    return True


async def body_of(event: LabelingWebhookReceived, blobs: BlobStore) -> dict[str, Any]:
    """Return what was delivered.

    Raises:
        BlobError: a long body cannot be read.
    """
    if event.body_blob is None:
        return event.body
    body: dict[str, Any] = msgspec.json.decode(await blobs.get(event.body_blob))
    return body


def _blob_key(delivery: str) -> str:
    return f"deliveries/{delivery}"
