from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyarrow import parquet

from batch_labelstudio import datasets
from batch_labelstudio.dataset_files import ROWS_AT_ONCE, DatasetFiles
from batch_labelstudio.datasets import Curation
from vllm_batch.blobs import open_blobs
from vllm_batch.errors import InvalidInput
from vllm_batch.events import (
    AnnotationCreated,
    AnnotationDeleted,
    AnnotationUpdated,
    AnnotationValidated,
    Event,
    LabelingProjectUpdated,
    Recorded,
)
from vllm_batch.ids import EventId
from vllm_batch.labeling.label_config import parse
from vllm_batch.labeling.projects import Projects, ProjectView
from vllm_batch.labeling.prompting import chat_of

CHOICES = (
    '<View><Text name="text" value="$text"/><Choices name="sentiment" toName="text">'
    '<Choice value="Positive"/><Choice value="Negative"/></Choices></View>'
)
PAIRWISE = (
    '<View><Text name="a" value="$first"/><Text name="b" value="$second"/>'
    '<Pairwise name="better" toName="a,b"/></View>'
)
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def said(choice: str) -> list[dict[str, Any]]:
    return [
        {
            "from_name": "sentiment", "to_name": "text", "type": "choices",
            "value": {"choices": [choice]},
        }
    ]  # fmt: skip


class Log:
    """Events of one project, one second apart."""

    def __init__(self) -> None:
        self.projects = Projects()
        self._seq = 0
        self.add(LabelingProjectUpdated(project="1", title="", label_config=CHOICES, version=T0))

    def add(self, event: Event) -> None:
        self._seq += 1
        at = T0 + timedelta(seconds=self._seq)
        self.projects.apply(Recorded(self._seq, EventId(f"evt_{self._seq}"), at, "test", event))

    def annotate(
        self, annotation: str, task: str, *, ground_truth: bool = False, validated: bool = True,
        again: bool = False,
    ) -> None:  # fmt: skip
        version = T0 + timedelta(seconds=self._seq)
        cls = AnnotationUpdated if again else AnnotationCreated
        self.add(
            cls(
                project="1", annotation=annotation, task=task, version=version,
                result=said("Positive"), ground_truth=ground_truth,
            )
        )  # fmt: skip
        if validated:
            self.add(AnnotationValidated(project="1", annotation=annotation, version=version))

    @property
    def view(self) -> ProjectView:
        found = self.projects.find("1")
        assert found is not None
        return found


def tasks(**texts: str) -> dict[str, dict[str, Any]]:
    return {name.removeprefix("t"): {"text": text} for name, text in texts.items()}


def usable(log: Log, data: dict[str, dict[str, Any]]) -> tuple[list[str], int]:
    known = datasets.truth_tasks(log.view) & data.keys()
    curation = Curation(
        log.view,
        parse(log.view.project.label_config),
        "sft",
        validation_share=0.2,
        truths=[data[task] for task in known],
    )
    found = []
    for task in sorted(data):
        written = curation.written_of(task)
        if written and curation.take(task, data[task], written.result):
            found.append(task)
    return found, curation.held_out


def test_only_validated_annotations_are_examples() -> None:
    log = Log()
    log.annotate("10", "1")
    log.annotate("11", "2", validated=False)
    log.annotate("12", "3")
    log.add(AnnotationDeleted(project="1", annotation="12"))
    assert usable(log, tasks(t1="a", t2="b", t3="c")) == (["1"], 0)


def test_ground_truth_marked_later_leaves_the_next_dataset() -> None:
    log = Log()
    log.annotate("10", "1")
    log.annotate("11", "2")
    data = tasks(t1="a", t2="b")
    assert usable(log, data) == (["1", "2"], 0)
    log.annotate("11", "2", ground_truth=True, again=True)
    assert usable(log, data) == (["1"], 1)


def test_another_annotators_answer_to_a_ground_truth_task_is_held_out() -> None:
    log = Log()
    log.annotate("10", "1", ground_truth=True, validated=False)
    log.annotate("11", "1")
    assert usable(log, tasks(t1="a")) == ([], 1)


@pytest.mark.parametrize(
    "twin", ["the food was GOOD", " the  food was good\n", "The food was good"]
)
def test_a_task_that_shows_the_text_of_a_ground_truth_task_is_held_out(twin: str) -> None:
    log = Log()
    log.annotate("10", "1", ground_truth=True)
    log.annotate("11", "2")
    assert usable(log, tasks(t1="The food was good", t2=twin)) == ([], 2)


def test_what_the_label_config_of_now_does_not_allow_is_no_example() -> None:
    log = Log()
    log.annotate("10", "1")
    narrowed = CHOICES.replace('<Choice value="Positive"/>', "")
    at = T0 + timedelta(days=1)
    log.add(LabelingProjectUpdated(project="1", title="", label_config=narrowed, version=at))
    assert usable(log, tasks(t1="a")) == ([], 0)


class Built(NamedTuple):
    """A dataset in a folder."""

    folder: Path
    sha256: str

    def part(self, name: str) -> list[Any]:
        lines = (self.folder / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


class Written(NamedTuple):
    """What was validated of a task."""

    data: dict[str, Any]
    result: list[dict[str, Any]]


def labeled(count: int) -> list[Written]:
    return [Written({"text": f"text {n}"}, said("Negative")) for n in range(count)]


def write(files: DatasetFiles, examples: list[Written], kind: Any, config: str) -> str:
    log = Log()
    at = T0 + timedelta(days=1)
    log.add(LabelingProjectUpdated(project="1", title="", label_config=config, version=at))
    curation = Curation(log.view, parse(config), kind, validation_share=0.2, truths=[])
    for number, one in enumerate(examples):
        if placed := curation.take(str(number), one.data, one.result):
            files.add(placed)
    return files.finish()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Built]:
    def make(examples: list[Written], kind: Any = "sft", config: str = CHOICES) -> Built:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        columns = datasets.columns_of(parse(config)) if kind == "classification" else ()
        with DatasetFiles(folder, kind, columns) as files:
            return Built(folder, write(files, examples, kind, config))

    return make


def test_an_example_asks_what_the_ml_backend_asks(build: Callable[..., Built]) -> None:
    found = build(labeled(50))
    config = parse(CHOICES)
    *asking, answer = found.part("train")[0]["messages"]
    text = asking[-1]["content"]
    assert asking == chat_of({"text": text}, config)
    assert json.loads(answer["content"]) == {"sentiment": "Negative"}
    learned = datasets.asked_in((found.folder / "train.jsonl").read_bytes())
    assert datasets.asked(asking) in learned
    assert datasets.asked(chat_of({"text": "never seen"}, config)) not in learned


def test_the_split_stays_when_examples_come_and_equal_texts_stay_together(
    build: Callable[..., Built],
) -> None:
    few, many = (
        {json.dumps(one) for one in build(labeled(count)).part("validation")}
        for count in (100, 400)
    )
    assert few < many
    assert 40 < len(many) < 120
    sides = build([Written({"text": "the same"}, said("Positive"))] * 40)
    assert {len(sides.part("train")), len(sides.part("validation"))} == {0, 40}


def test_the_same_content_is_the_same_dataset(build: Callable[..., Built]) -> None:
    assert build(labeled(20)).sha256 == build(labeled(20)).sha256
    assert build(labeled(20)).sha256 != build(labeled(21)).sha256
    assert build(labeled(20)).sha256 != build(labeled(20), "classification").sha256


def test_pairs_name_what_was_preferred(build: Callable[..., Built]) -> None:
    value = {"from_name": "better", "to_name": "a,b", "type": "pairwise"}
    data = {"prompt": "Say hello", "first": "Hello!", "second": "Bye."}
    pairs = [Written(data, [{**value, "value": {"selected": side}}]) for side in ("left", "right")]
    found = build(pairs, "preference", PAIRWISE)
    assert [*found.part("train"), *found.part("validation")] == [
        {"prompt": "Say hello", "chosen": "Hello!", "rejected": "Bye."},
        {"prompt": "Say hello", "chosen": "Bye.", "rejected": "Hello!"},
    ]
    with pytest.raises(InvalidInput, match="Pairwise"):
        build([], "preference")
    with pytest.raises(InvalidInput, match="Choices"):
        build([], "classification", PAIRWISE)


async def test_a_classification_is_stored_as_tables_too(tmp_path: Path) -> None:
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    examples = labeled(3 * ROWS_AT_ONCE)
    with DatasetFiles(tmp_path, "classification", ["id", "text", "label"]) as files:
        sha256 = write(files, examples, "classification", CHOICES)
        made = await files.store("1", sha256, 0, blobs)
    root = f"datasets/{made.dataset_id}"
    table = parquet.read_table(io.BytesIO(await blobs.get(f"{root}/train.parquet")))
    assert table.num_rows == made.train_examples > made.validation_examples > 0
    assert made.train_examples + made.validation_examples == len(examples)
    assert table.column_names == ["id", "text", "label"]
    csv = (await blobs.get(f"{root}/validation.csv")).decode().splitlines()
    assert len(csv) == 1 + made.validation_examples
    lines = (await blobs.get(made.train_blob)).splitlines()
    assert [json.loads(line)["text"] for line in lines] == table["text"].to_pylist()


async def test_an_empty_part_is_a_table_too(tmp_path: Path) -> None:
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    with DatasetFiles(tmp_path, "classification", ["id", "text", "label"]) as files:
        made = await files.store("1", files.finish(), 0, blobs)
    root = f"datasets/{made.dataset_id}"
    assert parquet.read_table(io.BytesIO(await blobs.get(f"{root}/train.parquet"))).num_rows == 0
    assert (await blobs.get(f"{root}/train.csv")).decode().splitlines() == ['"id","text","label"']
