"""What real deliveries of Label Studio 1.23.2 say, and what is none of our business."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batch_labelstudio.translation import annotation, said_by
from vllm_batch.blobs import open_blobs
from vllm_batch.errors import InvalidInput
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import LabelingWebhookReceived
from vllm_batch.labeling import deliveries
from vllm_batch.labeling.redaction import REDACTED, redacted

CAPTURED = sorted(Path(__file__).with_name("captures").glob("webhook.*.json"))
TEXT_CONFIG = '<View><Text name="text" value="$text"/></View>'
SAID = {
    "ANNOTATION_CREATED": ["annotation.created"],
    "ANNOTATION_UPDATED": ["annotation.created"],
    "ANNOTATIONS_CREATED": ["annotation.created", "annotation.created"],
    "ANNOTATIONS_DELETED": ["annotation.deleted"],
    "TASKS_CREATED": ["labeling.tasks_created"],
    "TASKS_DELETED": ["labeling.tasks_deleted"],
    "PROJECT_CREATED": ["labeling.project_updated"],
    "PROJECT_UPDATED": ["labeling.project_updated"],
    "PROJECT_DELETED": ["labeling.project_deleted"],
    "LABEL_LINK_CREATED": [],
    "LABEL_LINK_UPDATED": [],
    "LABEL_LINK_DELETED": [],
    "START_TRAINING": ["training.requested"],
}


def body_of(action: str, **changes: Any) -> dict[str, Any]:
    """Return a body with the keys and types that 1.23.2 was seen to send."""
    project = {
        "id": 2, "title": "p-cls", "label_config": TEXT_CONFIG, "token": "hidden-1",
        "task_data_password": "hidden-2", "updated_at": "2026-11-23T14:09:23.330282Z",
    }  # fmt: skip
    one = {
        "id": 4, "task": 9, "project": 2, "result": [{"type": "choices"}], "was_cancelled": False,
        "ground_truth": True, "lead_time": 3.2, "completed_by": 1, "parent_prediction": None,
        "updated_at": "2026-11-23T14:09:22.612124Z",
    }  # fmt: skip
    task = {"id": 9, "project": 2, "data": {"text": "t"}, "updated_at": "2026-11-23T14:09:22Z"}
    about: Mapping[str, dict[str, Any]] = {
        "ANNOTATION_CREATED": {"annotation": one, "task": task},
        "ANNOTATION_UPDATED": {"annotation": one, "task": task},
        "ANNOTATIONS_CREATED": {"annotation": [one, {**one, "id": 5}], "task": [task]},
        "ANNOTATIONS_DELETED": {"annotations": [{"id": 4}]},
        "TASKS_CREATED": {"tasks": [task]},
        "TASKS_DELETED": {"tasks": [{"id": 9}]},
        "LABEL_LINK_UPDATED": {"label_link": {"id": 1}},
    }
    return {"action": action, "project": project, **about.get(action, {}), **changes}


def received(action: str, body: dict[str, Any]) -> LabelingWebhookReceived:
    return LabelingWebhookReceived(
        delivery_id="dlv_1", action=action, project=deliveries.project_of(body)
    )


@pytest.mark.parametrize(("action", "types"), SAID.items())
def test_every_event_of_label_studio_is_understood(action: str, types: list[str]) -> None:
    parsed = deliveries.parse(json.dumps(body_of(action)).encode())
    assert parsed is not None
    assert [
        one.TYPE for one in said_by(received(*parsed), parsed[1], deliveries.project_of(parsed[1]))
    ] == types


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.stem)
def test_what_label_studio_really_sent_is_understood(path: Path) -> None:
    body = json.loads(path.read_text())["request"]["body"]
    parsed = deliveries.parse(json.dumps(body).encode())
    if "send_payload_false" in path.stem:
        assert parsed is None
        return
    assert parsed is not None
    action, about = parsed
    types = {one.TYPE for one in said_by(received(action, about), about, "2")}
    assert types == set(SAID[body["action"]])


@pytest.mark.parametrize(
    ("alias", "type_"),
    [
        ("TASK_CREATED", "labeling.tasks_created"), ("TASK_UPDATED", "labeling.tasks_created"),
        ("TASK_DELETED", "labeling.tasks_deleted"), ("ANNOTATION_DELETED", "annotation.deleted"),
        ("ANNOTATION_CREATED", "annotation.created"), ("ANNOTATION_UPDATED", "annotation.created"),
        ("PROJECT_UPDATED", "labeling.project_updated"), ("START_TRAINING", "training.requested"),
    ],
)  # fmt: skip
def test_other_names_of_the_same_things(alias: str, type_: str) -> None:
    noun = alias.partition("_")[0].lower()
    about = {noun: {"id": 3, "task": 9, "updated_at": "2026-01-01T00:00:00Z", "title": "p"}}
    body = {"action": alias, "project": {"id": 2}, **about}
    parsed = deliveries.parse(json.dumps(body).encode())
    assert parsed is not None
    assert [
        one.TYPE for one in said_by(received(*parsed), parsed[1], deliveries.project_of(parsed[1]))
    ] == [type_]


def test_an_annotation_keeps_what_matters() -> None:
    said = annotation("2", {**body_of("ANNOTATION_CREATED")["annotation"],
                            "completed_by": {"id": 7, "email": "x"}}, "reconciler")  # fmt: skip
    assert (said.project, said.annotation, said.task) == ("2", "4", "9")
    assert said.version.isoformat() == "2026-11-23T14:09:22.612124+00:00"
    assert (said.completed_by, said.lead_time_seconds, said.ground_truth) == ("7", 3.2, True)


@pytest.mark.parametrize("wrong", ["x", "1.>", None, 1.5, {"id": "2.>"}])
def test_ids_are_numbers_so_that_none_can_reach_other_subjects(wrong: Any) -> None:
    body = body_of("ANNOTATIONS_DELETED", annotations=[{"id": wrong}])
    with pytest.raises(msgspec.ValidationError):
        said_by(received("ANNOTATIONS_DELETED", body), body, deliveries.project_of(body))
    body = body_of("ANNOTATIONS_DELETED", project=wrong)
    with pytest.raises(msgspec.ValidationError):
        said_by(received("ANNOTATIONS_DELETED", body), body, deliveries.project_of(body))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"action": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_delivery_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        deliveries.parse(raw)


@pytest.mark.parametrize("raw", [b'{"action": "TASKS_CREATED"}', b'{"action": "X", "project": 1}'])
def test_what_says_nothing_is_ignored(raw: bytes) -> None:
    assert deliveries.parse(raw) is None


@pytest.mark.parametrize("action", ["PROJECT_UPDATED", "PROJECT_DELETED", "TASKS_DELETED"])
async def test_a_project_that_is_only_a_number_is_recorded(tmp_path: Path, action: str) -> None:
    store, blobs = MemoryEventStore(), open_blobs(tmp_path.as_uri())
    parsed = deliveries.parse(json.dumps({"action": action, "project": 5}).encode())
    assert parsed is not None
    assert await deliveries.record(store, blobs, *parsed)
    assert not await deliveries.record(store, blobs, *parsed)


def test_duplicates_have_one_id_and_other_versions_another() -> None:
    body = body_of("ANNOTATION_UPDATED")
    same = deliveries.delivery_id("ANNOTATION_UPDATED", body)
    assert deliveries.delivery_id("ANNOTATION_UPDATED", body_of("ANNOTATION_UPDATED")) == same
    later = {**body, "annotation": {**body["annotation"], "updated_at": "2027-01-01T00:00:00Z"}}
    assert deliveries.delivery_id("ANNOTATION_UPDATED", later) != same
    assert deliveries.delivery_id("ANNOTATION_CREATED", body) != same
    trainings = {deliveries.delivery_id("START_TRAINING", body) for _ in range(3)}
    assert len(trainings) == 3


async def test_nothing_secret_is_recorded_and_long_bodies_are_blobs(tmp_path: Path) -> None:
    store, blobs = MemoryEventStore(), open_blobs((tmp_path / "blobs").as_uri())
    task = {"id": 9, "data": {"text": "t" * 2000}, "updated_at": "2026-11-23T14:09:22Z"}
    short = body_of("PROJECT_UPDATED")
    long = body_of("TASKS_CREATED", tasks=[{**task, "id": n} for n in range(200)])
    assert await deliveries.record(store, blobs, "PROJECT_UPDATED", short)
    assert await deliveries.record(store, blobs, "TASKS_CREATED", long)
    assert not await deliveries.record(store, blobs, "TASKS_CREATED", long)
    recorded = [one.event async for batch in store.read(">") for one in batch]
    bodies = [
        await deliveries.body_of(one, blobs)
        for one in recorded
        if isinstance(one, LabelingWebhookReceived)
    ]
    assert [len(deliveries.things(body)) for body in bodies] == [0, 200]
    assert bodies[0]["project"]["token"] == REDACTED
    assert "hidden" not in repr((recorded, bodies))


def test_credentials_go_at_any_depth_and_the_rest_stays() -> None:
    value = {"a": [{"Access-Token": "x", "b": {"password": "y", "tokens": 3}}], "token": None}
    assert redacted(value) == {
        "a": [{"Access-Token": REDACTED, "b": {"password": REDACTED, "tokens": 3}}], "token": None,
    }  # fmt: skip
