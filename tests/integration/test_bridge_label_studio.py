"""The bridge and a real Label Studio: what is done there is in the log, once each."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from tests.bridge_bench import (
    a_completed_batch,
    bridge_stack,
    configured,
    deliver,
    end_of,
    events_of,
    eventually,
    is_connected,
    log_of,
    until,
)
from tests.facts import append
from tests.real_label_studio import LabelStudio

import batch_labelstudio.label_studio
from batch_gateway.api import server
from batch_gateway.api.app import create_app
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    LabelingPushFailed,
    LabelingPushRequested,
    LabelingTasksCreated,
    LabelingTasksPushed,
    LabelingWebhookReceived,
)
from vllm_batch.labeling.webhook_endpoint import PATH, SECRET_HEADER
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects

TASKS = 1200


@pytest.fixture(scope="module")
def stack(
    label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    with bridge_stack(tmp_path_factory.mktemp("bridge"), label_studio) as running:
        yield running


@pytest.fixture
async def store(stack: LocalStack) -> AsyncIterator[JetStreamEventStore]:
    async with log_of(stack) as opened:
        yield opened


@pytest.fixture
async def project(label_studio: LabelStudio, store: JetStreamEventStore) -> str:
    """A project that is configured and connected."""
    made = label_studio.make_project("flow")
    await append(store, configured(made, write_back=True))
    await until(store, made, is_connected)
    return made


async def test_what_annotators_do_arrives_by_webhook(
    label_studio: LabelStudio, store: JetStreamEventStore, project: str
) -> None:
    tasks = label_studio.make_tasks(project, [{"text": f"t{n}"} for n in range(3)])
    first = label_studio.choose(tasks[0], "Positive", lead_time=2.5)
    second = label_studio.choose(tasks[1], "Negative", was_cancelled=True)
    label_studio.call("PATCH", f"/api/annotations/{first}/", {"ground_truth": True})
    label_studio.call("DELETE", f"/api/annotations/{second}/")
    view = await until(
        store,
        project,
        lambda v: (
            len(v.annotations) == 2
            and v.annotations[str(second)].deleted
            and bool(v.ground_truth())
            and v.project.tasks == {str(task) for task in tasks}
            and v.project.title == "flow"
        ),
    )
    written = view.annotations[str(first)].written
    assert written is not None
    assert written.task == str(tasks[0])
    assert written.lead_time_seconds == 2.5
    assert written.result[0]["value"] == {"choices": ["Positive"]}
    said = await events_of(store, subjects.aggregate("annotation", project, "*"))
    counts = Counter((one.event.TYPE, one.event.aggregate_id()[1]) for one in said)
    assert counts["annotation.created", str(first)] == 1
    assert counts["annotation.created", str(second)] <= 1
    assert counts["annotation.deleted", str(second)] == 1


async def test_1200_tasks_in_one_import_are_recorded_once(
    label_studio: LabelStudio, store: JetStreamEventStore, project: str
) -> None:
    label_studio.make_tasks(project, [{"text": f"t{n}" * 30} for n in range(TASKS)])
    view = await until(store, project, lambda v: len(v.project.tasks) == TASKS)
    assert len(view.project.tasks) == TASKS
    created = subjects.aggregate("labeling", project)
    said = [one.event for one in await events_of(store, created)]
    assert sum(len(one.tasks) for one in said if isinstance(one, LabelingTasksCreated)) == TASKS


async def test_the_webhook_is_made_once_put_right_and_label_studios_own_one_is_removed(
    label_studio: LabelStudio, stack: LocalStack, store: JetStreamEventStore, project: str
) -> None:
    def webhooks() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = label_studio.call("GET", f"/api/webhooks/?project={project}")
        return found

    (ours,) = webhooks()
    secret = stack.settings.label_studio_webhook_secret.get_secret_value()
    assert ours["headers"] == {SECRET_HEADER: secret}
    broken = {"url": ours["url"], "is_active": False, "headers": {}, "actions": []}
    label_studio.call("PATCH", f"/api/webhooks/{ours['id']}/", broken)
    own = {"url": f"{stack.settings.bridge_url}/webhook", "project": int(project)}
    label_studio.call("POST", "/api/webhooks/", own)
    await append(store, configured(project, prompt="again"))

    def mended() -> bool:
        (first, *more) = webhooks()
        return not more and bool(first["is_active"]) and first["headers"] == ours["headers"]

    await eventually(mended)
    assert webhooks()[0]["id"] == ours["id"]
    assert webhooks()[0]["send_for_all_actions"]


async def test_what_validation_says_is_written_to_the_task(
    label_studio: LabelStudio, store: JetStreamEventStore, project: str
) -> None:
    (task,) = label_studio.make_tasks(project, [{"text": "so so"}])
    annotation = str(label_studio.choose(task, "Sideways"))  # its label config has no such choice
    meta = await eventually(lambda: label_studio.call("GET", f"/api/tasks/{task}/")["meta"])
    assert meta["vllm_batch"][annotation]["reasons"] == ["schema"]
    assert meta["vllm_batch"][annotation]["verdict"] == "flagged"


async def test_a_wrong_secret_or_a_body_that_is_none_stores_nothing(
    stack: LocalStack, store: JetStreamEventStore
) -> None:
    deliveries = subjects.every(LabelingWebhookReceived)
    before = [one.seq for one in await events_of(store, deliveries)]
    body = {"action": "PROJECT_UPDATED", "project": {"id": 99}}
    assert deliver(stack, body, secret="no").status_code == 401
    assert deliver(stack, body, secret="").status_code == 401
    assert deliver(stack, b"{no").status_code == 400
    assert deliver(stack, b"[" * 100_000).status_code == 400
    assert deliver(stack, [1]).status_code == 400
    large = b"0" * (stack.settings.label_studio_webhook_bytes_max + 1)
    assert deliver(stack, large).status_code == 413
    assert deliver(stack, {"action": "TASKS_CREATED"}).json() == {"status": "ignored"}
    assert [one.seq for one in await events_of(store, deliveries)] == before


async def test_no_token_is_in_the_log_or_in_a_log_file(
    label_studio: LabelStudio, stack: LocalStack, store: JetStreamEventStore, project: str
) -> None:
    body = {
        "action": "START_TRAINING",
        "project": {"id": int(project), "token": "pass-word-0", "task_data_password": "pass-word"},
        "params": {"login": "me", "password": "pass-word-2", "deep": [{"access_token": "pass-3"}]},
    }
    assert deliver(stack, body).json() == {"status": "recorded"}
    label_studio.choose(label_studio.make_tasks(project, [{"text": "t"}])[0], "Positive")
    await until(store, project, lambda v: len(v.annotations) == 1)
    kept = [repr(one) for one in await events_of(store, ">")]
    kept += [path.read_text() for path in stack.home.logs.iterdir()]
    webhook_secret = stack.settings.label_studio_webhook_secret.get_secret_value()
    assert any("'token': '[redacted]'" in text for text in kept)
    for never in (label_studio.token, webhook_secret, "pass-word", "pass-3"):
        assert not [text for text in kept if never in text], never
    started = await events_of(store, "training.>")
    assert started[0].event.TYPE == "training.requested"


async def test_a_batchs_results_become_tasks_once_with_their_predictions(
    label_studio: LabelStudio, stack: LocalStack, store: JetStreamEventStore, project: str
) -> None:
    job = await a_completed_batch(store, stack, ["Positive", "Negative", "no idea", None])
    for push, created, known in (("push_1", 3, 0), ("push_2", 0, 3)):
        asked = LabelingPushRequested(
            project=project, push_id=push, source=job, requested_by="test"
        )
        await append(store, asked)
        end = await end_of(store, asked)
        assert isinstance(end, LabelingTasksPushed), end
        assert (end.created, end.known, end.skipped) == (created, known, 1)
        assert end.skipped_why == ["r3: the request failed"]
        assert end.predictions == (2 if created else 0)
    found = label_studio.call("GET", f"/api/tasks/?project={project}&fields=all")["tasks"]
    by_id = {task["data"]["external_id"]: task for task in found}
    assert sorted(by_id) == [f"{job}/r{n}" for n in range(3)]
    assert by_id[f"{job}/r1"]["data"]["text"] == "film 1"
    (prediction,) = by_id[f"{job}/r1"]["predictions"]
    assert prediction["result"][0]["value"] == {"choices": ["Negative"]}
    assert prediction["model_version"] == "small"
    assert prediction["score"] == pytest.approx(0.9, abs=0.01)
    assert by_id[f"{job}/r2"]["predictions"] == []


async def test_a_completed_batch_is_pushed_by_rule_and_what_cannot_be_pushed_says_why(
    label_studio: LabelStudio, stack: LocalStack, store: JetStreamEventStore, project: str
) -> None:
    await append(store, configured(project, push_automatically=True))
    await until(store, project, lambda v: bool(v.project.configured.push_automatically))  # type: ignore[union-attr]
    await a_completed_batch(store, stack, ["Positive"], metadata={"labeling_project": project})
    await until(store, project, lambda v: len(v.project.tasks) == 1)
    for source in ("batch_nobody", "no such thing"):
        asked = LabelingPushRequested(
            project=project, push_id=f"push_{source[:5]}".replace(" ", ""), source=source,
            requested_by="test",
        )  # fmt: skip
        await append(store, asked)
        end = await end_of(store, asked)
        assert isinstance(end, LabelingPushFailed)
        assert source in end.reason


async def test_the_gateway_takes_deliveries_when_the_bridge_is_down(
    stack: LocalStack, store: JetStreamEventStore, project: str
) -> None:
    settings = stack.settings
    body = {"action": "TASKS_CREATED", "tasks": [{"id": 77}], "project": {"id": int(project)}}
    right = {SECRET_HEADER: settings.label_studio_webhook_secret.get_secret_value()}
    stack.service("labelstudio-bridge").hold()
    try:
        async with server.connected(settings) as dependencies:
            transport = httpx.ASGITransport(create_app(dependencies))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                assert (await client.post(PATH, json=body)).status_code == 401
                assert (await client.post(PATH, json=body, headers=right)).json() == {
                    "status": "recorded"
                }
    finally:
        stack.service("labelstudio-bridge").release()
    await until(store, project, lambda v: "77" in v.project.tasks | v.project.deleted_tasks)


async def test_a_personal_access_token_is_exchanged_and_exchanged_again(
    label_studio: LabelStudio, stack: LocalStack
) -> None:
    access = label_studio.call("POST", "/api/token/")["token"]
    settings = stack.settings.model_copy(update={"label_studio_api_key": SecretStr(access)})
    async with batch_labelstudio.label_studio.connect(settings) as client:
        assert client is not None
        assert await client.project("999999") is None
        client._access = "stale"
        assert await client.task("999999") is None


async def test_the_commands(
    label_studio: LabelStudio, stack: LocalStack, store: JetStreamEventStore
) -> None:
    made = label_studio.make_project("by command")
    job = await a_completed_batch(store, stack, ["Positive"])

    async def label(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "vllm_batch.cli", "label", *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, "--home", str(stack.home.root), "--json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, (out or err).decode()

    code, out = await label("configure", "--project", made, "--model", "small", "--template", "ner")
    assert code == 1
    assert "it fits --template classification" in out
    code, out = await label("configure", "--project", "999999", "--model", "small")
    assert (code, "no project 999999" in out) == (4, True)
    code, out = await label("configure", "--project", made, "--model", "small")
    assert (code, json.loads(out)["connected"]) == (0, True)
    code, out = await label("push", job, "--project", made)
    assert (code, json.loads(out)["created"], json.loads(out)["predictions"]) == (0, 1, 1)
    code, out = await label("push", "batch_nobody", "--project", made)
    assert code == 1
    assert "there is no batch batch_nobody" in out
    await until(store, made, lambda v: len(v.project.tasks) == 1 and v.project.title != "")
    code, out = await label("projects")
    (row,) = [one for one in json.loads(out) if one["project"] == made]
    assert (row["title"], row["model"], row["tasks"]) == ("by command", "small", 1)
