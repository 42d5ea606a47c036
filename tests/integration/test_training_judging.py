"""A trained version is measured by the ground truth of a real Label Studio, and judged by that."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from tests import rule_model
from tests.bridge_bench import configured
from tests.facts import append
from tests.real_label_studio import CHOICES, LabelStudio
from tests.rule_model import RuleModel

from batch_labelstudio import label_studio as label_studio_api
from batch_labelstudio import predicting
from batch_labelstudio.bridge import Bridge
from batch_labelstudio.feed import ProjectFeed
from batch_labelstudio.model_feed import ModelFeed
from batch_labelstudio.predicting import Question
from batch_labelstudio.reconciler import Reconciler
from batch_labelstudio.training import duty, preparing
from vllm_batch import ids, model_orders, model_registry, tasks, training_runs
from vllm_batch.aggregates.training import Run, RunStatus
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import ManualClock, SystemClock
from vllm_batch.errors import Rejected
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    AnnotationValidated,
    ModelReady,
    TrainingCompleted,
    TrainingPrepared,
    TrainingRequested,
    TrainingStarted,
)
from vllm_batch.ids import WorkerId
from vllm_batch.labeling.label_config import parse
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.labeling.prompting import chat_of
from vllm_batch.model_orders import Registration
from vllm_batch.settings import Settings

ALIAS, BASE, RUN = "sentiment", "small", "run_" + "n" * 8
NEW = f"{ALIAS}-{'n' * 8}"
TRUTHS_MIN = 2
# The base answers "love" with Positive and all else with Negative; the new version the contrary.
BASE_IS_RIGHT = {"love it": "Positive", "my love": "Positive", "bad": "Negative"}
NEW_IS_RIGHT = {"love it": "Negative", "my love": "Negative", "bad": "Positive"}


@pytest.fixture(scope="module")
def model() -> Iterator[RuleModel]:
    with rule_model.running() as server:
        server.contrary.add(NEW)
        yield server


@pytest.fixture
async def bridge(
    settings: Settings,
    event_store: JetStreamEventStore,
    label_studio: LabelStudio,
    model: RuleModel,
) -> AsyncIterator[Bridge]:
    """A bridge with a base and a trained version of it, which a worker serves."""
    settings = settings.model_copy(
        update={
            "label_studio_url": label_studio.url,
            "label_studio_api_key": SecretStr(label_studio.token),
            "gateway_url": model.url,
            "training_ground_truth_min": TRUTHS_MIN,
        }
    )
    for wanted in (
        Registration(name=BASE, source="/small", aliases=[ALIAS]),
        Registration(name=NEW, source=f"blob:adapters/{RUN}", base=BASE, training_run=RUN),
    ):
        await model_orders.register(event_store, wanted, requested_by="test")
    await model_orders.load(event_store, NEW, requested_by="test")
    ready = ModelReady(model_key=ids.model_key(NEW), worker_id=WorkerId("w_1"), worker_name="w")
    await append(event_store, ready)
    feed, models = ProjectFeed(event_store), ModelFeed(event_store)
    await models.load()
    async with (
        label_studio_api.connect(settings) as client,
        predicting.connected(settings) as predictor,
    ):
        following = asyncio.ensure_future(feed.follow())
        try:
            yield Bridge(
                settings=settings, store=event_store, blobs=open_blobs(settings.blob_url),
                label_studio=client, feed=feed, models=models, predictor=predictor,
                clock=SystemClock(),
            )  # fmt: skip
        finally:
            await tasks.end(following)


async def project_of(bridge: Bridge, server: LabelStudio, truths: dict[str, str]) -> ProjectView:
    """Make a project that asks the alias; ``truths`` has what is true by text."""
    project = server.make_project("judged")
    [recorded] = await append(bridge.store, configured(project, model=ALIAS))
    await bridge.feed.reached(recorded.seq)
    data = [{"text": text} for text in truths]
    made = server.make_tasks(project, data) if data else []
    for task, choice in zip(made, truths.values(), strict=True):
        server.choose(task, choice, ground_truth=True)
    return await read(bridge, project)


async def read(bridge: Bridge, project: str) -> ProjectView:
    """Take in what Label Studio has now."""
    assert bridge.label_studio is not None
    view = bridge.feed.projects.find(project)
    assert view is not None
    await Reconciler(bridge, bridge.label_studio).reconcile(view)
    return view


async def judge(bridge: Bridge, view: ProjectView, learned: str = "something else") -> Run:
    """Have a run that learned a text judged; return what became of it."""
    await train(bridge, view, learned)
    run = await look(bridge)
    return run if run.ended else await look(bridge)


async def train(bridge: Bridge, view: ProjectView, learned: str = "something else") -> None:
    """Record a run that has learned a text."""
    config = parse(CHOICES)
    asked = chat_of({"text": learned}, config)
    line = {"messages": [*asked, {"role": "assistant", "content": "{}"}]}
    await bridge.blobs.put("train", json.dumps(line).encode() + b"\n")
    project = view.project.project
    await append(
        bridge.store,
        TrainingRequested(run_id=RUN, project=project, trigger="command", requested_by="me"),
        TrainingPrepared(
            run_id=RUN, project=project, dataset_id="ds_1", train_blob="train",
            validation_blob="v", base_model=BASE, base_source="/small", alias=ALIAS,
        ),
        TrainingStarted(run_id=RUN, trainer=WorkerId("t_1"), trainer_name="trainer"),
        TrainingCompleted(run_id=RUN, adapter_blob=f"adapters/{RUN}", loss=0.1, seconds=1),
    )  # fmt: skip


async def look(bridge: Bridge) -> Run:
    runs = await training_runs.load(bridge.store)
    await duty.TrainingDuty(bridge, runs).look()
    return (await training_runs.load(bridge.store)).runs[RUN]


async def meaning(bridge: Bridge) -> str | None:
    return (await model_registry.load(bridge.store)).resolve(ALIAS)


async def test_without_a_key_or_with_one_that_is_none_nobody_is_asked_for_ever(
    bridge: Bridge, model: RuleModel
) -> None:
    question = Question(parse(CHOICES), BASE)
    for key, failed in (("", False), ("no\nkey", True)):
        settings = bridge.settings.model_copy(update={"gateway_api_key": SecretStr(key)})
        async with predicting.connected(settings) as predictor:
            [found] = await predictor.predict([{"text": "love"}], question, seconds=60)
        assert bool(found.failed) is failed
        assert not found.failed or "cannot be asked" in found.failed


async def test_what_is_better_by_the_ground_truth_is_promoted(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(bridge, label_studio, {**NEW_IS_RIGHT, "love": "Positive"})
    run = await judge(bridge, view)
    assert run.status is RunStatus.PROMOTED
    assert run.evaluated is not None
    assert (run.evaluated.before, run.evaluated.after, run.evaluated.tasks) == (0.25, 0.75, 4)
    assert [(one.model_version, one.accuracy) for one in view.project.measured] == [
        (BASE, 0.25), (NEW, 0.75),
    ]  # fmt: skip
    assert await meaning(bridge) == NEW


async def test_a_model_that_does_not_answer_is_asked_again_after_growing_pauses(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    await train(bridge, await project_of(bridge, label_studio, NEW_IS_RIGHT))
    refused = bridge.settings.model_copy(update={"gateway_api_key": SecretStr("no\nkey")})
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with predicting.connected(refused) as predictor:
        patient = dataclasses.replace(bridge, predictor=predictor, clock=clock)
        looking = duty.TrainingDuty(patient, await training_runs.load(bridge.store))
        with capture_logs() as logs:
            for seconds in (0, 0.5, 0.5, 1, 1, *[15] * 4):
                clock.advance(seconds)
                await looking.look()
    pauses = [one["again_in_seconds"] for one in logs if one["event"] == "cannot measure now"]
    assert pauses == [1, 2, 4, 8, 15, 15, 15]


async def test_another_project_of_the_same_alias_does_not_lose(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(bridge, label_studio, NEW_IS_RIGHT)
    other = await project_of(bridge, label_studio, BASE_IS_RIGHT)
    run = await judge(bridge, view)
    assert run.status is RunStatus.REJECTED
    assert run.rejected is not None
    assert f"project {other.project.project}, which asks {ALIAS} too" in run.rejected.reason
    assert "from 1.000 to 0.000" in run.rejected.reason
    assert await meaning(bridge) == BASE


async def test_another_project_without_ground_truth_has_no_say(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    await project_of(bridge, label_studio, {})
    view = await project_of(bridge, label_studio, NEW_IS_RIGHT)
    assert (await judge(bridge, view)).status is RunStatus.PROMOTED


async def test_a_version_is_not_measured_by_what_it_has_learned(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(bridge, label_studio, NEW_IS_RIGHT)
    run = await judge(bridge, view, learned="my love")
    assert run.failed is not None
    assert run.failed.retryable, "the next run is trained without it"
    assert "ground truth by now" in run.failed.reason
    assert await meaning(bridge) == BASE


async def test_too_little_ground_truth_promotes_nothing(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(bridge, label_studio, {"love": "Negative"})
    run = await judge(bridge, view)
    assert run.failed is not None
    assert "only 1 tasks have ground truth" in run.failed.reason
    assert await meaning(bridge) == BASE
    with pytest.raises(Rejected, match="1 tasks with ground truth"):
        await preparing.prepare(bridge, view, run)


async def test_truth_that_was_skipped_or_does_not_fit_measures_nothing(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(
        bridge, label_studio, {**NEW_IS_RIGHT, "loved": "Sideways", "lovely": "Negative"}
    )
    found = label_studio.call(
        "GET", f"/api/tasks/?project={view.project.project}&fields=all&page_size=100"
    )["tasks"]
    [skipped] = [one for one in found if one["data"]["text"] == "lovely"]
    path = f"/api/annotations/{skipped['annotations'][0]['id']}/"
    label_studio.call("PATCH", path, {"was_cancelled": True})
    await read(bridge, view.project.project)
    run = await judge(bridge, view)
    assert run.evaluated is not None
    assert (run.evaluated.tasks, run.evaluated.after) == (3, 1.0)


async def test_an_annotation_that_changes_after_the_export_is_not_in_that_dataset(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(bridge, label_studio, BASE_IS_RIGHT)
    project = view.project.project
    [task, gone] = label_studio.make_tasks(project, [{"text": "new 😀"}, {"text": "gone"}])
    annotation = label_studio.choose(task, "Positive")
    label_studio.choose(gone, "Positive")
    await read(bridge, project)

    async def validate() -> None:
        open_ = [(i, a.written) for i, a in view.present() if a.verdict is None and a.written]
        for name, written in open_:
            said = AnnotationValidated(project=project, annotation=name, version=written.version)
            [recorded] = await append(bridge.store, said)
            await bridge.feed.reached(recorded.seq)

    await validate()
    label_studio.call("DELETE", f"/api/tasks/{gone}/")  # its annotation goes without a word
    made = await preparing.export(bridge, view, "sft")
    assert made.train_examples + made.validation_examples == 1
    assert made.held_out == len(BASE_IS_RIGHT)
    region = label_studio.call("GET", f"/api/annotations/{annotation}/")["result"][0]
    region["value"] = {"choices": ["Negative"]}
    label_studio.call("PATCH", f"/api/annotations/{annotation}/", {"result": [region]})
    await read(bridge, project)
    unsure = await preparing.export(bridge, view, "sft")
    assert unsure.train_examples + unsure.validation_examples == 0, "not validated yet"
    await validate()
    again = await preparing.export(bridge, view, "sft")
    assert again.dataset_id != made.dataset_id
    for dataset, choice in ((made, "Positive"), (again, "Negative")):
        parts = [
            await bridge.blobs.get(blob) for blob in (dataset.train_blob, dataset.validation_blob)
        ]
        [line] = b"".join(parts).splitlines()
        *_, asked, answer = json.loads(line)["messages"]
        assert asked["content"] == "new 😀"
        assert json.loads(answer["content"]) == {"sentiment": choice}


async def test_a_draft_is_no_annotation_yet_and_an_empty_one_is_no_example(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(bridge, label_studio, {})
    project = view.project.project
    drafted, empty = label_studio.make_tasks(project, [{"text": "draft"}, {"text": "empty"}])
    value = {"choices": ["Positive"]}
    region = {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": value}
    label_studio.call("POST", f"/api/tasks/{drafted}/drafts", {"result": [region]})
    label_studio.annotate(empty, [])
    await read(bridge, project)
    [(name, annotation)] = view.present()
    assert annotation.written is not None
    assert (annotation.written.task, annotation.written.result) == (str(empty), [])
    said = AnnotationValidated(
        project=project, annotation=name, version=annotation.written.version
    )  # as no rule would say
    [recorded] = await append(bridge.store, said)
    await bridge.feed.reached(recorded.seq)
    made = await preparing.export(bridge, view, "classification")
    assert (made.train_examples, made.validation_examples) == (0, 0)


async def test_a_button_that_is_hit_twice_trains_once(
    bridge: Bridge, label_studio: LabelStudio
) -> None:
    view = await project_of(bridge, label_studio, NEW_IS_RIGHT)
    project = view.project.project
    for task in label_studio.make_tasks(project, [{"text": f"text {n}"} for n in range(20)]):
        label_studio.choose(task, "Positive")
    await read(bridge, project)
    for name, annotation in list(view.present()):
        assert annotation.written is not None
        version = annotation.written.version
        said = AnnotationValidated(project=project, annotation=name, version=version)
        [recorded] = await append(bridge.store, said)
    await bridge.feed.reached(recorded.seq)

    async def statuses() -> list[str]:
        runs = await training_runs.load(bridge.store)
        await duty.TrainingDuty(bridge, runs).look()
        return [one.status.value for one in (await training_runs.load(bridge.store)).runs.values()]

    for name in (RUN, "run_again"):
        hit = TrainingRequested(run_id=name, project=project, trigger="button", requested_by="ls")
        await append(bridge.store, hit)
    assert await statuses() == ["prepared", "requested"]
    await append(
        bridge.store,
        TrainingStarted(run_id=RUN, trainer=WorkerId("t_1"), trainer_name="trainer"),
        TrainingCompleted(run_id=RUN, adapter_blob=f"adapters/{RUN}", loss=0.1, seconds=1),
    )
    assert await statuses() == ["evaluated", "requested"]
    assert await statuses() == ["promoted", "requested"]
    assert await statuses() == ["promoted", "failed"]
    again = (await training_runs.load(bridge.store)).runs["run_again"]
    assert again.failed is not None
    assert again.failed.reason == f"run {RUN} has learned the same examples"
