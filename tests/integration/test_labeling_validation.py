"""Annotations of a real Label Studio: validated, measured by, agreed upon."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests import rule_model
from tests.bridge_bench import bridge_stack, configured, is_connected, log_of, until
from tests.facts import append
from tests.real_label_studio import CHOICES, LabelStudio
from tests.rule_model import RuleModel

from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import AnnotationFlagged, AnnotationValidated
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.local.stack import LocalStack


@pytest.fixture(scope="module")
def model() -> Iterator[RuleModel]:
    with rule_model.running() as server:
        yield server


@pytest.fixture(scope="module")
def stack(
    label_studio: LabelStudio, model: RuleModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    home = tmp_path_factory.mktemp("validation")
    with bridge_stack(home, label_studio, gateway_url=model.url) as running:
        yield running


@pytest.fixture
async def store(stack: LocalStack) -> AsyncIterator[JetStreamEventStore]:
    async with log_of(stack) as opened:
        yield opened


@pytest.fixture
async def project(label_studio: LabelStudio, store: JetStreamEventStore) -> str:
    made = label_studio.make_project("validated")
    await append(store, configured(made))
    await until(store, made, lambda view: is_connected(view) and bool(view.project.label_config))
    return made


def reasons(view: ProjectView, annotation: int) -> list[str] | None:
    """Return why an annotation is flagged, an empty list if it is not, None if it is not judged."""
    found = view.annotations.get(str(annotation))
    match found.verdict if found else None:
        case AnnotationFlagged(reasons=reasons):
            return list(reasons)
        case AnnotationValidated():
            return []
    return None


def label(stack: LocalStack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``vllm-batch label …``."""
    command = [sys.executable, "-m", "vllm_batch.cli", "label", *arguments]
    home = ["--home", str(stack.home.root)]
    return subprocess.run([*command, *home], capture_output=True, text=True, check=False)


async def run(stack: LocalStack, *arguments: str) -> Any:
    """Run ``vllm-batch label … --json`` and return what it said."""
    done = await asyncio.to_thread(label, stack, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_what_is_handed_in_is_judged_once_a_version(project, store, label_studio):
    good, bad, skipped = label_studio.make_tasks(project, [{"text": f"t{n}"} for n in range(3)])
    first = label_studio.choose(good, "Positive")
    second = label_studio.choose(bad, "Sideways")
    third = label_studio.annotate(skipped, [], was_cancelled=True)
    view = await until(
        store,
        project,
        lambda view: None not in [reasons(view, one) for one in (first, second, third)],
    )
    assert reasons(view, first) == []
    assert reasons(view, second) == ["schema"]
    assert reasons(view, third) == ["skipped"]
    label_studio.call(
        "PATCH",
        f"/api/annotations/{second}/",
        {"result": label_studio.call("GET", f"/api/annotations/{first}/")["result"]},
    )
    await until(store, project, lambda view: reasons(view, second) == [])


async def test_another_label_config_judges_again_what_it_contradicts(project, store, label_studio):
    first, second = label_studio.make_tasks(project, [{"text": "a"}, {"text": "b"}])
    known, new = label_studio.choose(first, "Positive"), label_studio.choose(second, "Mixed")
    view = await until(
        store, project, lambda view: None not in (reasons(view, known), reasons(view, new))
    )
    assert (reasons(view, known), reasons(view, new)) == ([], ["schema"])
    wider = CHOICES.replace("</Choices>", '<Choice value="Mixed"/></Choices>')
    label_studio.call("PATCH", f"/api/projects/{project}/", {"label_config": wider})
    view = await until(store, project, lambda view: reasons(view, new) == [])
    said = [recorded async for batch in store.read(f"annotation.*.{project}.{known}")
            for recorded in batch]  # fmt: skip
    assert [one.event.TYPE for one in said] == ["annotation.created", "annotation.validated"]


async def test_a_prediction_that_is_none_speaks_neither_for_nor_against(
    project, store, label_studio
):
    [task] = label_studio.make_tasks(project, [{"text": "t"}])
    for result in ({"not": "a list"}, ["not a region"]):
        broken = {"task": task, "result": result, "score": 0.97, "model_version": "m"}
        label_studio.client.post("/api/predictions/", json=broken)
    annotation = label_studio.choose(task, "Negative")
    await until(store, project, lambda view: reasons(view, annotation) == [])


async def test_a_later_annotation_changes_what_is_said_of_the_earlier_one(
    project, store, label_studio
):
    [task] = label_studio.make_tasks(project, [{"text": "t"}])
    first = label_studio.choose(task, "Positive")
    await until(store, project, lambda view: reasons(view, first) == [])
    second = label_studio.choose(task, "Negative", completed_by=second_annotator(label_studio))
    both = ["annotators_disagree"]
    view = await until(
        store, project, lambda view: reasons(view, first) == both == reasons(view, second)
    )
    verdict = view.annotations[str(first)].verdict
    assert verdict is not None
    assert verdict.agreement == 0.0
    label_studio.call("DELETE", f"/api/annotations/{second}/")
    await until(store, project, lambda view: reasons(view, first) == [])


async def test_a_model_that_is_sure_of_something_else_flags(project, store, label_studio):
    [task] = label_studio.make_tasks(project, [{"text": "t"}])
    region = {
        "from_name": "sentiment", "to_name": "text", "type": "choices",
        "value": {"choices": ["Positive"]},
    }  # fmt: skip
    prediction = {"task": task, "result": [region], "score": 0.97, "model_version": "m"}
    label_studio.call("POST", "/api/predictions/", prediction)
    annotation = label_studio.choose(task, "Negative")
    view = await until(store, project, lambda view: reasons(view, annotation) is not None)
    assert reasons(view, annotation) == ["model_disagrees"]
    assert view.annotations[str(annotation)].verdict.model_version == "m"


async def test_a_judge_is_asked_where_nothing_else_speaks_against(project, store, label_studio):
    await append(store, configured(project, judge_model="judge"))
    right, wrong = label_studio.make_tasks(project, [{"text": "I love it"}, {"text": "love"}])
    first, second = label_studio.choose(right, "Positive"), label_studio.choose(wrong, "Negative")
    view = await until(
        store, project, lambda view: None not in (reasons(view, first), reasons(view, second))
    )
    assert (reasons(view, first), reasons(view, second)) == ([], ["judge"])
    assert view.annotations[str(second)].verdict.details == ["judge: It reads so."]


async def test_what_was_handed_in_while_the_bridge_was_away_is_judged(
    stack, project, store, label_studio
):
    bridge = stack.service("labelstudio-bridge")
    [task] = label_studio.make_tasks(project, [{"text": "t"}])
    annotation = label_studio.choose(task, "Positive")
    await until(store, project, lambda view: str(annotation) in view.annotations)
    bridge.kill()
    await until(store, project, lambda view: reasons(view, annotation) == [])
    view = await until(store, project, lambda view: reasons(view, annotation) == [])
    seqs = [
        recorded.seq
        async for batch in store.read(f"annotation.validated.{project}.{annotation}")
        for recorded in batch
    ]
    assert seqs == [view.annotations[str(annotation)].seq]


async def test_accuracy_against_the_ground_truth_on_the_command_line(
    stack, project, store, label_studio, model
):
    texts = ["I love it", "love, love", "bad", "all my love", "awful"]
    truth = ["Positive", "Positive", "Negative", "Negative", "Negative"]
    tasks = label_studio.make_tasks(project, [{"text": text} for text in texts])
    annotations = [
        label_studio.choose(task, choice) for task, choice in zip(tasks, truth, strict=True)
    ]
    await until(store, project, lambda view: len(view.annotations) == len(tasks))
    await run(stack, "ground-truth", "mark", "--project", project, *map(str, annotations))
    listed = await run(stack, "ground-truth", "list", "--project", project)
    assert [one["id"] for one in listed] == [str(one) for one in annotations]
    [measured] = (await run(stack, "accuracy", "--project", project, "--measure"))["measured"]
    assert measured["model_version"] == "m"
    assert measured["tasks"] == 5
    assert measured["accuracy"] == pytest.approx(0.8)
    assert measured["confusion"] == [[2, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert measured["interval_low"] < 0.8 < measured["interval_high"]
    [kept] = (await run(stack, "accuracy", "--project", project))["measured"]
    since = datetime.now(UTC) - datetime.fromisoformat(kept.pop("measured_at"))
    assert timedelta() < since < timedelta(minutes=5)
    assert kept == measured

    await run(stack, "ground-truth", "unmark", "--project", project, str(annotations[3]))
    stored = label_studio.call("GET", f"/api/annotations/{annotations[3]}/")
    assert stored["ground_truth"] is False
    [measured] = (await run(stack, "accuracy", "--project", project, "--measure"))["measured"]
    assert (measured["tasks"], measured["accuracy"]) == (4, 1.0)
    assert len((await run(stack, "accuracy", "--project", project))["measured"]) == 2


async def test_agreement_of_two_annotators_on_the_command_line(stack, project, store, label_studio):
    other = second_annotator(label_studio)
    said = [("Positive", "Positive"), ("Negative", "Negative"), ("Positive", "Negative")]
    tasks = label_studio.make_tasks(project, [{"text": f"t{n}"} for n in range(len(said))])
    for task, (first, second) in zip(tasks, said, strict=True):
        label_studio.choose(task, first)
        label_studio.choose(task, second, completed_by=other)
    await until(store, project, lambda view: len(view.annotations) == 2 * len(said))
    report = await run(stack, "agreement", "--project", project)
    assert report["tasks"] == 3
    assert report["mean"] == pytest.approx(2 / 3)
    [pair] = report["annotators"]
    assert pair["tasks"] == 3
    assert pair["kappa"] == pytest.approx(0.4)
    assert report["by_task"][str(tasks[2])] == 0.0


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["accuracy", "--project", "999999"], 4),
        (["accuracy", "--project", "999999", "--measure"], 4),
        (["agreement", "--project", "999999"], 4),
        (["ground-truth", "mark", "--project", "999999", "1"], 4),
        (["ground-truth", "mark", "--project", "1", "x"], 2),
    ],
)
def test_what_is_not_there_is_said(stack, arguments: list[str], exit_code: int):
    done = label(stack, *arguments)
    assert done.returncode == exit_code
    assert "Traceback" not in done.stderr


def second_annotator(label_studio: LabelStudio) -> int:
    """Return the id of another user, made the first time."""
    users = label_studio.call("GET", "/api/users/")
    email = "second@example.com"
    for user in users:
        if user["email"] == email:
            return int(user["id"])
    return int(
        label_studio.call("POST", "/api/users/", {"email": email, "username": "second"})["id"]
    )
