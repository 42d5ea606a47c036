"""The ML backend, connected to a real Label Studio, and what is asked of a model for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from tests import rule_model
from tests.bridge_bench import bridge_stack, configured, eventually, is_connected, log_of, until
from tests.facts import append
from tests.real_label_studio import CHOICES, LabelStudio
from tests.rule_model import RuleModel

from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import TrainingRequested
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging import subjects

USER, PASSWORD = "label-studio", "a password of the test"
TASKS = 256
LABEL_STUDIO_WAITS_SECONDS = 100
RETRIEVE_SECONDS = 240


@pytest.fixture(scope="module")
def model() -> Iterator[RuleModel]:
    with rule_model.running() as server:
        yield server


@pytest.fixture(scope="module")
def stack(
    label_studio: LabelStudio, model: RuleModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    settings = {
        "gateway_url": model.url,
        "ml_backend_username": USER,
        "ml_backend_password": PASSWORD,
        "label_annotator_seconds": 6.0,
    }
    home = tmp_path_factory.mktemp("ml_backend")
    with bridge_stack(home, label_studio, **settings) as running:
        yield running


@pytest.fixture
async def store(stack: LocalStack) -> AsyncIterator[JetStreamEventStore]:
    async with log_of(stack) as opened:
        yield opened


@pytest.fixture
async def project(label_studio: LabelStudio, store: JetStreamEventStore) -> str:
    """A project whose model is "m"."""
    made = label_studio.make_project("predicted")
    await append(store, configured(made, prompt="Is this good? {text}"))
    await until(store, made, is_connected)
    return made


def call(stack: LocalStack, path: str, body: Any = None, **options: Any) -> httpx.Response:
    """Call the ML backend as Label Studio does."""
    url = stack.settings.bridge_url + path
    with httpx.Client(timeout=30, auth=(USER, PASSWORD)) as client:
        return client.request("GET" if body is None else "POST", url, json=body, **options)


def answers(stack: LocalStack) -> bool:
    """Tell whether a bridge is there."""
    try:
        return call(stack, "/health").is_success
    except httpx.TransportError:
        return False


def predict(stack: LocalStack, project: str, texts: list[str], context: Any = None) -> Any:
    body = {
        "tasks": [{"id": n, "data": {"text": text}} for n, text in enumerate(texts)],
        "project": f"{project}.1795443107",
        "label_config": CHOICES,
        "params": {"login": None, "password": None, "context": context},
    }
    answer = call(stack, "/predict", body)
    assert answer.status_code == 200
    return answer.json()["results"]


def connect(label_studio: LabelStudio, stack: LocalStack, project: str, **fields: Any) -> Any:
    return label_studio.call(
        "POST",
        "/api/ml/",
        {
            "url": stack.settings.bridge_url,
            "project": int(project),
            "title": "vllm-batch",
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": USER,
            "basic_auth_pass": PASSWORD,
            **fields,
        },
    )


def retrieve(label_studio: LabelStudio, project: str) -> None:
    path = f"/api/dm/actions/?id=retrieve_tasks_predictions&project={project}"
    selected = {"selectedItems": {"all": True, "excluded": []}}
    # Label Studio stores them one by one, which takes longer than predicting them.
    assert label_studio.client.post(path, json=selected, timeout=RETRIEVE_SECONDS).is_success


def chosen(item: Any) -> list[str]:
    return [choice for region in item["result"] for choice in region["value"]["choices"]]


def test_every_task_has_its_item_in_order_whatever_the_model_says(stack, project):
    items = predict(stack, project, ["I love it", "rubbish", "bad", "love"])
    assert [chosen(item) for item in items] == [["Positive"], [], ["Negative"], ["Positive"]]
    assert [item.get("score") for item in items] == [
        pytest.approx(0.75),
        None,
        *[pytest.approx(0.75)] * 2,
    ]
    assert {item["model_version"] for item in items} == {"m"}


def test_the_project_prompt_and_the_form_of_its_answer_reach_the_model(stack, project, model):
    model.asked.clear()
    predict(stack, project, ["I love it"])
    [asked] = model.asked
    assert asked["model"] == "m"
    assert asked["messages"][-1]["content"] == "Is this good? I love it"
    schema = asked["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["sentiment"]["enum"] == ["Positive", "Negative"]


def test_a_busy_gateway_is_asked_again(stack, project, model):
    model.busy = 3
    [item] = predict(stack, project, ["I love it"])
    assert chosen(item) == ["Positive"]


def test_what_is_not_done_in_time_has_an_item_that_stores_nothing(stack, project, model):
    model.released.clear()
    began = time.monotonic()
    assert predict(stack, project, ["slow"]) == [[]]
    model.released.set()
    assert time.monotonic() - began < 15


def test_interactively_the_model_hears_what_the_annotator_said(stack, project, model):
    model.asked.clear()
    value = {"choices": ["Negative"]}
    region = {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": value}
    [item] = predict(stack, project, ["rubbish"], {"result": [region]})
    assert item["result"] == []
    assert '{"sentiment": "Negative"}' in model.asked[0]["messages"][-1]["content"]


def test_an_unknown_project_gets_items_without_predictions_and_setup_says_why(stack):
    assert predict(stack, "999999", ["a", "b"]) == [[], []]
    answer = call(stack, "/setup", {"project": "999999.1", "schema": CHOICES})
    assert answer.status_code == 409
    assert "label configure" in answer.text


def test_setup_and_predict_name_the_same_version(stack, project):
    body = {"project": f"{project}.1", "schema": CHOICES, "access_token": "a-secret-token"}
    assert call(stack, "/setup", body).json() == {"model_version": "m"}
    assert predict(stack, project, ["x"])[0]["model_version"] == "m"
    assert "m" in call(stack, "/versions").json()["versions"]
    logs = "".join(file.read_text() for file in stack.home.root.rglob("*.log"))
    assert "a-secret-token" not in logs


@pytest.mark.parametrize(
    "path", ["/health", "/versions", "/setup", "/predict", "/train", "/webhook"]
)
@pytest.mark.parametrize("auth", [None, (USER, "wrong"), ("wrong", PASSWORD)])
def test_nobody_comes_in_without_user_and_password(stack, path: str, auth: Any):
    body = None if path in {"/health", "/versions"} else {"tasks": [], "project": "1.1"}
    url = stack.settings.bridge_url + path
    with httpx.Client() as client:
        answer = client.request("GET" if body is None else "POST", url, json=body, auth=auth)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"tasks": 3}', b'{"tasks": [1]}'])
def test_what_is_no_call_is_refused(stack, content: bytes):
    url = stack.settings.bridge_url + "/predict"
    with httpx.Client(auth=(USER, PASSWORD)) as client:
        assert client.post(url, content=content).status_code == 400


@pytest.mark.parametrize("path", ["/train", "/webhook"])
async def test_a_wish_for_training_is_recorded(stack, store, project: str, path: str):
    body = {"action": "START_TRAINING", "project": {"id": int(project)}}
    assert call(stack, path, body).status_code == 201
    async with asyncio.timeout(120):
        async for batch in store.follow([subjects.every(TrainingRequested)]):
            if any(one.event.project == project for one in batch):
                return


async def test_label_studio_retrieves_256_predictions_in_one_call(
    stack, store, project: str, label_studio: LabelStudio, model: RuleModel
):
    texts = [f"I {'love' if n % 2 else 'hate'} it {n}" for n in range(TASKS)]
    ids = label_studio.make_tasks(project, [{"text": text} for text in texts])
    connect(label_studio, stack, project)
    began = time.monotonic()
    assert all(chosen(item) for item in predict(stack, project, texts))
    seconds = time.monotonic() - began
    print(f"\n{TASKS} tasks predicted in {seconds:.1f} s")
    assert seconds < LABEL_STUDIO_WAITS_SECONDS
    model.asked.clear()
    retrieve(label_studio, project)
    path = f"/api/predictions/?project={project}&page_size=1000"
    stored = label_studio.call("GET", path)
    said = {one["task"]: chosen(one) for one in stored}
    assert said == {task: ["Positive" if n % 2 else "Negative"] for n, task in enumerate(ids)}
    assert {(one["model_version"], round(one["score"], 2)) for one in stored} == {("m", 0.75)}
    assert len(model.asked) == TASKS
    retrieve(label_studio, project)
    assert len(label_studio.call("GET", path)) == TASKS
    assert len(model.asked) == TASKS


async def test_an_annotator_who_opens_a_task_finds_a_prediction(
    stack, project: str, label_studio: LabelStudio
):
    label_studio.make_tasks(project, [{"text": "I love it"}])
    connect(label_studio, stack, project)
    label_studio.call(
        "PATCH", f"/api/projects/{project}/", {"evaluate_predictions_automatically": True}
    )
    task = label_studio.call("GET", f"/api/projects/{project}/next/")
    assert [chosen(one) for one in task["predictions"]] == [["Positive"]]


async def test_the_editor_gets_a_prediction_while_the_annotator_works(
    stack, project: str, label_studio: LabelStudio
):
    [task] = label_studio.make_tasks(project, [{"text": "I love it"}])
    backend = connect(label_studio, stack, project, is_interactive=True)
    answer = label_studio.call(
        "POST",
        f"/api/ml/{backend['id']}/interactive-annotating",
        {"task": task, "context": {"result": []}},
    )
    assert chosen(answer["data"]) == ["Positive"]


async def test_the_bridge_is_killed_in_the_middle_of_a_call_and_nothing_is_stored_wrongly(
    stack, project: str, label_studio: LabelStudio, model: RuleModel
):
    label_studio.make_tasks(project, [{"text": "I love it slow"}, {"text": "bad"}])
    connect(label_studio, stack, project)
    model.released.clear()
    model.slow_arrived.clear()
    path = f"/api/predictions/?project={project}"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        retrieving = pool.submit(retrieve, label_studio, project)
        assert model.slow_arrived.wait(20)
        stack.service("labelstudio-bridge").kill()
        retrieving.result(60)
    model.released.set()
    assert label_studio.call("GET", path) == []
    await eventually(lambda: answers(stack))
    retrieve(label_studio, project)
    assert sorted(chosen(one) for one in label_studio.call("GET", path)) == [
        ["Negative"],
        ["Positive"],
    ]
