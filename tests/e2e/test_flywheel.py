"""The flywheel, whole: corrections made in a real Label Studio become a better model by themselves.

Real vLLM and real training on the small model. On the way the training process is killed once, and
the bridge between the measurement and the promotion.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.bridge_bench import events_of, log_of, until
from tests.e2e.conftest import Round, jsonl
from tests.real_label_studio import LabelStudio

from vllm_batch import model_registry
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import (
    Event,
    ModelAliased,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingPromoted,
    TrainingRequested,
)
from vllm_batch.local.stack import CORE_ROLES, LocalStack
from vllm_batch.messaging import subjects

ALIAS = "sentiment"
GROUND_TRUTH, LEARNED, LEFT = 12, 24, 4
TRAIN_AFTER = 20
TRAINING_SECONDS = 900.0
# What these reviewers mean by their words the base cannot know: it guesses half of them.
POSITIVE = ("wicked", "sick", "insane", "unreal", "killer", "mad")
NEGATIVE = ("fine", "okay", "adequate", "decent", "passable", "nice")
THINGS = ("food", "film", "hotel", "book", "service", "music", "garden", "train")
SYSTEM = 'Answer with a JSON object: {"sentiment": one of "Positive", "Negative"}'
SCHEMA = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["Positive", "Negative"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}
FORM = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
}


def sentences() -> list[tuple[str, str]]:
    """Return different sentences with what they express, half of each, in an order of chance."""
    found = [
        (f"The {thing} was {word}.", choice)
        for choice, words in (("Positive", POSITIVE), ("Negative", NEGATIVE))
        for word in words
        for thing in THINGS
    ]
    random.Random(3).shuffle(found)
    each = (GROUND_TRUTH + LEARNED + LEFT) // 2
    good, bad = ([one for one in found if one[1] == c][:each] for c in ("Positive", "Negative"))
    return [one for pair in zip(good, bad, strict=True) for one in pair]


@pytest.fixture(scope="module")
def stack(
    label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    overrides = {
        "label_studio_url": label_studio.url,
        "label_studio_api_key": label_studio.token,
        "lora": True,
        "training_epochs": 4,
    }
    home = tmp_path_factory.mktemp("flywheel") / "stack"
    roles = CORE_ROLES | {"bridge", "trainer"}
    with LocalStack(home, engine="vllm", only=roles, settings_overrides=overrides) as running:
        yield running


@pytest.fixture
async def store(stack: LocalStack) -> AsyncIterator[JetStreamEventStore]:
    async with log_of(stack) as opened:
        yield opened


class Story:
    """A user's way, with the commands that the README names."""

    def __init__(
        self, stack: LocalStack, label_studio: LabelStudio, store: JetStreamEventStore
    ) -> None:
        self.stack, self.label_studio, self.store = stack, label_studio, store
        self.project = label_studio.make_project("reviews")

    def command(self, *arguments: str) -> Any:
        home = ("--home", str(self.stack.home.root), "--json")
        done = subprocess.run(
            [sys.executable, "-m", "vllm_batch.cli", *arguments, *home],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run_batch(self, texts: list[str]) -> str:
        with openai.OpenAI(base_url=self.stack.api_url, api_key=self.stack.api_key) as client:
            user = Round(self.stack, client)
            lines = [
                user.line(
                    f"review-{number}",
                    messages=[
                        {"role": "system", "content": SYSTEM},
                        {"role": "user", "content": text},
                    ],
                    response_format=FORM,
                )
                for number, text in enumerate(texts)
            ]
            batch = user.wait(user.submit(jsonl(lines)), seconds=120)
        assert batch.status == "completed"
        return batch.id

    def tasks(self) -> dict[str, int]:
        """Return the project's tasks by their text."""
        path = f"/api/tasks/?project={self.project}&fields=all&page_size=500"
        found = self.label_studio.call("GET", path)["tasks"]
        return {task["data"]["text"]: task["id"] for task in found}

    async def next(self, cls: type[Event], *, after: int = 0) -> tuple[Any, int]:
        """Return the first event of a kind after a place in the log, and its place."""
        try:
            async with asyncio.timeout(TRAINING_SECONDS):
                async for batch in self.store.follow([subjects.every(cls)], after=after):
                    return batch[0].event, batch[0].seq
        except TimeoutError:
            pass
        training = [one.event for one in await events_of(self.store, subjects.ALL_TRAINING)]
        raise AssertionError(f"no {cls.TYPE}; the log has {training}")

    def kill_training(self) -> None:
        """Kill the process that fine-tunes, and only it."""
        order = str(self.stack.home.root / "training" / "trainer.job").encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if order in words and not any(b"guardian.py" in word for word in words):
                    os.kill(int(entry.name), signal.SIGKILL)
                    return
        raise AssertionError("nothing is being trained")

    def predict(self, texts: list[str]) -> tuple[set[str], list[str]]:
        """Ask the ML backend as Label Studio does; return the versions and the answers."""
        view = self.label_studio.call("GET", f"/api/projects/{self.project}/")
        body = {
            "tasks": [{"id": n, "data": {"text": text}} for n, text in enumerate(texts)],
            "project": f"{self.project}.1",
            "label_config": view["label_config"],
            "params": {},
        }
        answer = httpx.post(f"{self.stack.settings.bridge_url}/predict", json=body, timeout=100)
        results = answer.raise_for_status().json()["results"]
        said = [one["result"][0]["value"]["choices"][0] for one in results]
        return {one["model_version"] for one in results}, said


async def meaning(store: JetStreamEventStore) -> str | None:
    return (await model_registry.load(store)).resolve(ALIAS)


@pytest.mark.timeout(3600)
async def test_corrections_become_a_better_model(
    stack: LocalStack, label_studio: LabelStudio, store: JetStreamEventStore
) -> None:
    story = await asyncio.to_thread(Story, stack, label_studio, store)
    base, project = stack.model_name, story.project
    known = sentences()
    labeled, left = known[:-LEFT], known[-LEFT:]

    async def command(*arguments: str) -> Any:
        return await asyncio.to_thread(story.command, *arguments)

    source = str(stack.settings.model)
    await command("model", "add", source, "--name", base, "--alias", ALIAS)
    await command(
        "label", "configure", "--project", project, "--model", ALIAS,
        "--train-after", str(TRAIN_AFTER),
    )  # fmt: skip
    batch = await asyncio.to_thread(story.run_batch, [text for text, _ in labeled])
    pushed = await command("label", "push", batch, "--project", project)
    assert pushed["created"] == pushed["predictions"] == len(labeled)
    tasks = await asyncio.to_thread(story.tasks)

    def annotate() -> None:
        for number, (text, choice) in enumerate(labeled):
            label_studio.choose(tasks[text], choice, ground_truth=number < GROUND_TRUTH)

    await asyncio.to_thread(annotate)
    await until(store, project, lambda view: len(view.validated()) >= TRAIN_AFTER)

    first, _ = await story.next(TrainingRequested)
    assert first.trigger == "annotations"
    await story.next(TrainingProgressed)
    await asyncio.to_thread(story.kill_training)
    failed, seq = await story.next(TrainingFailed)
    assert failed.retryable
    assert await meaning(store) == base
    again, _ = await story.next(TrainingRequested, after=seq)
    assert (again.trigger, again.retry_of) == ("retry", first.run_id)

    await story.next(TrainingEvaluated)
    bridge = stack.service("labelstudio-bridge")
    killed = await asyncio.to_thread(bridge.kill)
    promoted, _ = await story.next(TrainingPromoted)
    print(f"accuracy on ground truth: {promoted.before:.3f} before, {promoted.after:.3f} after")
    assert promoted.tasks == GROUND_TRUTH
    assert promoted.after > promoted.before
    assert promoted.replaced == base
    assert await meaning(store) == promoted.model
    moves = [one.event for one in await events_of(store, subjects.every(ModelAliased))]
    assert sum(ALIAS in move.aliases for move in moves if isinstance(move, ModelAliased)) == 1

    await asyncio.to_thread(lambda: bridge.wait_ready(60, other_than=killed))
    versions, said = await asyncio.to_thread(story.predict, [text for text, _ in left])
    assert versions == {promoted.model}
    right = sum(one == choice for one, (_, choice) in zip(said, left, strict=True))
    assert right >= LEFT - 1

    rolled_back = await command("training", "rollback", "--project", project)
    assert rolled_back["status"] == "rolled_back"
    assert await meaning(store) == base
