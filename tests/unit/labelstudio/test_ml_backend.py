"""The ML backend is spoken to as Label Studio 1.23.2 spoke when it was recorded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from tests.facts import append

from batch_labelstudio.app import create_app
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.feed import ProjectFeed
from batch_labelstudio.model_feed import ModelFeed
from batch_labelstudio.predicting import Predictor
from vllm_batch import ids
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import (
    LabelingProjectConfigured,
    LabelingWebhookReceived,
    ModelAliased,
    ModelRegistered,
)
from vllm_batch.settings import Settings

ANSWERS = {
    "sentiment": '{"sentiment": "Negative"}',
    "why": '{"why": "half a smile \\ud83d"}',
    "label": '{"label": [{"start": 1, "end": 9, "text": "IBM", "label": "ORG"}]}',
}


def model_says(request: httpx.Request) -> httpx.Response:
    """Answer as a server with structured output does, without logprobs."""
    body = json.loads(request.content)
    [name] = body["response_format"]["json_schema"]["schema"]["properties"]
    return httpx.Response(200, json={"choices": [{"message": {"content": ANSWERS[name]}}]})


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    store = MemoryEventStore()
    for project in ("3", "7"):
        configured = LabelingProjectConfigured(
            project=project, template="classification", model="sentiment", requested_by="test"
        )
        await append(store, configured)
    feed, models = ProjectFeed(store), ModelFeed(store)
    await feed.load()
    settings = Settings(home=tmp_path)
    transport = httpx.MockTransport(model_says)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Bridge(
            settings=settings,
            store=store,
            blobs=open_blobs(f"file://{tmp_path}"),
            label_studio=None,
            feed=feed,
            models=models,
            predictor=Predictor(client, settings),
            clock=SystemClock(),
        )


@pytest.fixture
async def label_studio(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(bridge))
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
        yield client


async def replay(client: httpx.AsyncClient, file: Path) -> httpx.Response:
    request = json.loads(file.read_text())["request"]
    path = "/" + request["path"].rsplit("/", 1)[1]
    return await client.request(request["method"], path, json=request["body"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("open_task", [["Negative"]]),
        ("retrieve_predictions_batch", [["Negative"], ["Negative"]]),
        ("test_random", [["Negative"]]),
        ("interactive", [["Negative"]]),
    ],
)
async def test_recorded_calls_get_an_item_per_task(
    label_studio, captures: Path, name: str, expected: list[list[str]]
):
    answer = await replay(label_studio, captures / f"ml.predict.{name}.json")
    items = answer.json()["results"]
    assert [item["result"][0]["value"]["choices"] for item in items] == expected
    assert all("score" not in item for item in items)


async def test_offsets_of_a_recorded_task_are_put_right(label_studio, captures: Path):
    answer = await replay(label_studio, captures / "ml.predict.ner.json")
    [item] = answer.json()["results"]
    assert item["result"][0]["value"] == {"start": 9, "end": 12, "text": "IBM", "labels": ["ORG"]}


async def test_half_a_character_in_an_answer_spoils_no_call(label_studio):
    config = '<View><Text name="t" value="$t"/><TextArea name="why" toName="t"/></View>'
    body = {"project": "3.1", "label_config": config, "tasks": [{"data": {"t": "x"}}] * 2}
    answer = await label_studio.post("/predict", json=body)
    texts = [item["result"][0]["value"]["text"] for item in answer.json()["results"]]
    assert texts == [["half a smile ?"]] * 2


@pytest.mark.parametrize("name", ["health", "health.basic_auth", "versions"])
async def test_recorded_calls_without_a_body(label_studio, captures: Path, name: str):
    assert (await replay(label_studio, captures / f"ml.{name}.json")).status_code == 200


async def test_a_promoted_model_is_another_version_at_once(bridge, label_studio, captures: Path):
    capture = captures / "ml.setup.json"
    assert (await replay(label_studio, capture)).json() == {"model_version": "sentiment"}
    key = ids.model_key("sentiment-2")
    await append(
        bridge.store,
        ModelRegistered(model_key=key, name="sentiment-2", source="x", requested_by="test"),
        ModelAliased(model_key=key, aliases=["sentiment"], requested_by="test"),
    )
    await bridge.models.load()
    assert (await replay(label_studio, capture)).json() == {"model_version": "sentiment-2"}
    predicted = await replay(label_studio, captures / "ml.predict.open_task.json")
    assert predicted.json()["results"][0]["model_version"] == "sentiment-2"


@pytest.mark.parametrize("name", ["START_TRAINING", "START_TRAINING.basic_auth"])
async def test_a_wish_for_training_is_recorded_and_other_events_are_not(
    bridge, label_studio, captures: Path, name: str
):
    heard = await replay(label_studio, captures / "ml.webhook.ANNOTATION_CREATED.auto_hook.json")
    assert heard.json() == {"status": "ignored"}
    assert (await replay(label_studio, captures / f"ml.webhook.{name}.json")).status_code == 201
    recorded: list[Any] = [one async for batch in bridge.store.read(">") for one in batch]
    wishes = [one.event for one in recorded if isinstance(one.event, LabelingWebhookReceived)]
    assert [wish.action for wish in wishes] == ["START_TRAINING"]
    assert "token" not in str(wishes[0].body)


@pytest.mark.parametrize("given", ["Basic é", "Basic !", "Basic", "Bearer x", "Basic bWU6bm8="])
async def test_whatever_is_no_right_password_is_refused(bridge, given: str):
    secret = {"ml_backend_username": "me", "ml_backend_password": SecretStr("right")}
    kept_out = dataclasses.replace(bridge, settings=bridge.settings.model_copy(update=secret))
    transport = httpx.ASGITransport(app=create_app(kept_out))
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
        headers = {"authorization": given.encode("latin-1")}
        assert (await client.get("/health", headers=headers)).status_code == 401
        assert (await client.get("/health", auth=("me", "right"))).status_code == 200
