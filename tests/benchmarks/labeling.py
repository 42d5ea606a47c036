"""What many annotations cost the bridge: accuracy, agreement, looking for what is open, export;
and how long Label Studio waits for the answer to a delivery.

    python -m tests.benchmarks.labeling                        100,000 annotations
    python -m tests.benchmarks.labeling --annotations 20000
    python -m tests.benchmarks.labeling --deliveries 500       instead: 500 of each kind, one by one

Deliveries go to a bridge and a NATS of their own: an annotation, and an import of 1,200 tasks
(820 kB), the largest that was seen. Label Studio waits for a second.

The rest is CPU seconds, so that a busy machine says the same. Export: the peak of what Python holds
while a dataset is written, for a fifth of the annotations and for all of them: it should not grow.
The benchmark checks that what it measures is right.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from rich.console import Console
from rich.table import Table

from batch_labelstudio import agreement, metrics
from batch_labelstudio.dataset_files import DatasetFiles
from batch_labelstudio.datasets import Curation
from batch_labelstudio.validation.duty import is_open
from tests.unit.labelstudio.configs import CHOICES, SPANS
from vllm_batch.aggregates.annotation import Annotation
from vllm_batch.aggregates.labeling import Project
from vllm_batch.events import AnnotationCreated, AnnotationValidated
from vllm_batch.labeling.answers import from_result
from vllm_batch.labeling.label_config import parse
from vllm_batch.labeling.projects import ProjectView
from vllm_batch.labeling.webhook_endpoint import PATH, SECRET_HEADER
from vllm_batch.local.stack import LocalStack

Found = TypeVar("Found")
AT = datetime(2026, 1, 1, tzinfo=UTC)
TEXT = "the quick brown fox jumps over the lazy dog and says so again " * 4
ANNOTATORS_PER_TASK = 2
SPANS_EACH = 3
IMPORTED, META_CHARACTERS = 1200, 385
MIB = 1024 * 1024
console = Console()


def choice(rng: random.Random) -> list[dict[str, Any]]:
    value = {"choices": [rng.choice(["Positive", "Negative"])]}
    return [{"from_name": "sentiment", "to_name": "text", "type": "choices", "value": value}]


def spans(rng: random.Random) -> list[dict[str, Any]]:
    starts = [rng.randrange(100) for _ in range(SPANS_EACH)]
    values = [
        {"start": n, "end": n + 4, "text": TEXT[n : n + 4], "labels": [rng.choice(["PER", "ORG"])]}
        for n in starts
    ]
    return [
        {"from_name": "label", "to_name": "text", "type": "labels", "value": value}
        for value in values
    ]


def project_of(
    count: int, xml: str, result: Callable[[random.Random], list[dict[str, Any]]]
) -> ProjectView:
    """Return a project of ``count`` validated annotations, two for each task."""
    rng, view = random.Random(7), ProjectView(Project("1", label_config=xml))
    for n in range(count):
        name = {"project": "1", "annotation": str(n), "version": AT}
        task, annotator = divmod(n, ANNOTATORS_PER_TASK)
        written = AnnotationCreated(
            **name, task=str(task), completed_by=str(annotator), result=result(rng)
        )
        view.set(str(n), Annotation(written, n + 1, judged=AnnotationValidated(**name)))
    return view


def export(view: ProjectView, count: int) -> int:
    """Write a dataset of the project's tasks; return the peak of what Python held, in bytes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        DatasetFiles(Path(folder), "classification", ["id", "text", "label"]) as files,
    ):
        curation = Curation(view, parse(CHOICES), "classification", validation_share=0.1, truths=[])
        tracemalloc.start()
        examples = 0
        for task in range(count // ANNOTATORS_PER_TASK):
            written = curation.written_of(str(task))
            assert written is not None
            placed = curation.take(str(task), {"text": f"{task} {TEXT}"}, written.result)
            assert placed is not None
            files.add(placed)
            examples += 1
        files.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert examples == count // ANNOTATORS_PER_TASK
    return peak


def timed(table: Table, what: str, deed: Callable[[], Found]) -> Found:
    """Do something; note the CPU seconds it took."""
    began = time.process_time()
    found = deed()
    table.add_row(what, f"{time.process_time() - began:.2f}")
    return found


def annotation(number: int) -> dict[str, Any]:
    """Return the delivery of one annotation."""
    value = {"choices": ["Positive"]}
    region = {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": value}
    made = {"id": number, "task": number, "updated_at": AT.isoformat(), "result": [region]}
    task = {"id": number, "data": {"text": TEXT}}
    return {"action": "ANNOTATION_CREATED", "annotation": made, "task": task, "project": {"id": 1}}


def tasks_created(number: int) -> dict[str, Any]:
    """Return the delivery of an import."""
    tasks = [
        {"id": number * IMPORTED + n, "data": {"text": TEXT}, "meta": "m" * META_CHARACTERS}
        for n in range(IMPORTED)
    ]
    return {"action": "TASKS_CREATED", "tasks": tasks, "project": {"id": 1}}


def deliveries(count: int) -> None:
    """Deliver each kind ``count`` times, one after the other, and print how long it took."""
    table = Table("delivery", "bytes", "p50 ms", "p99 ms", "longest ms")
    home = tempfile.TemporaryDirectory()
    with home as folder, LocalStack(Path(folder) / "home", only={"nats", "bridge"}) as stack:
        secret = stack.settings.label_studio_webhook_secret.get_secret_value()
        headers = {SECRET_HEADER: secret, "content-type": "application/json"}
        url = stack.settings.bridge_url + PATH
        with httpx.Client(headers=headers, timeout=60) as client:
            for name, make in (("an annotation", annotation), ("1,200 tasks", tasks_created)):
                took = []
                for number in range(1, count + 1):
                    body = json.dumps(make(number)).encode()
                    began = time.perf_counter()
                    answer = client.post(url, content=body)
                    took.append((time.perf_counter() - began) * 1000)
                    assert answer.json() == {"status": "recorded"}, answer.text
                places = statistics.quantiles(took, n=100)
                shown = (places[49], places[98], max(took))
                table.add_row(name, f"{len(body):,}", *(f"{one:.1f}" for one in shown))
    console.print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=100_000)
    parser.add_argument("--deliveries", type=int, default=0)
    given = parser.parse_args()
    if given.deliveries:
        deliveries(given.deliveries)
        return
    count: int = given.annotations
    table = Table("what", "CPU seconds")
    for name, xml, result in (("choices", CHOICES, choice), ("spans", SPANS, spans)):
        view, config = project_of(count, xml, result), parse(xml)
        control = config.primary
        assert control is not None
        said = [
            from_result(config, one.written.result)[control.name]
            for _, one in view.present()
            if one.written
        ]
        pairs = list(zip(said, said, strict=True))
        scores = timed(table, f"{name}: accuracy", lambda: metrics.score(control, pairs))  # noqa: B023
        assert (scores.tasks, scores.accuracy) == (count, 1.0)
        report = timed(table, f"{name}: agreement", lambda: agreement.of_project(view, config))  # noqa: B023
        assert report.tasks == count // ANNOTATORS_PER_TASK
        opened = timed(
            table, f"{name}: what is open",
            lambda: sum(is_open(one, config) for _, one in view.present()),  # noqa: B023
        )  # fmt: skip
        assert opened == 0
        timed(table, f"{name}: counted for the rules", view.validated)
        timed(table, f"{name}: counted again", view.validated)
    console.print(table)
    small, large = (
        export(project_of(one, CHOICES, choice), one) / MIB for one in (count // 5, count)
    )
    console.print(
        f"export holds {small:.1f} MiB for {count // 5:,} annotations, {large:.1f} MiB for "
        f"{count:,}: {large / small:.2f} times as much"
    )


if __name__ == "__main__":
    main()
