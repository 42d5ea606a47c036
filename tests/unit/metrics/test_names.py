"""Every metric that any service has is named and described as Prometheus has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_batch.metrics.catalogue import SERVICES, Described, as_markdown, described

EVERY = [(service, metric) for service in SERVICES for metric in described(service)]
BASE_UNITS = ("seconds", "bytes", "joules", "celsius", "watts", "ratio")
OTHER_UNITS = re.compile(
    r"_(milli|micro|nano)?(second|ms|us|minutes?|hours?|days?|[kmg]i?b|byte|percent|mhz|mw)$"
)
COUNTED = re.compile(
    r"_(requests|chunks|batches|workers|events|messages|endpoints|pending|projects|open|leader|"
    r"connected|up|ready|in_flight|limit|waiting|leased)$"
)
UNBOUNDED = {"job", "job_id", "batch", "custom_id", "worker_id", "key", "user", "path", "project"}


def name(case: tuple[str, Described]) -> str:
    return f"{case[0]} {case[1].name}"


@pytest.mark.parametrize("case", EVERY, ids=name)
def test_names_units_and_words(case: tuple[str, Described]) -> None:
    metric = case[1]
    assert re.fullmatch(r"vllm_batch(_[a-z0-9]+)+", metric.name)
    assert metric.text.endswith(".")
    assert metric.text[0].isupper() or metric.text[0].isdigit()
    assert len(metric.text) <= 110
    stem = metric.name.removesuffix("_total").removesuffix("_info")
    assert not OTHER_UNITS.search(stem), "base units only"
    has_unit = stem.endswith(BASE_UNITS)
    if metric.kind == "gauge":
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        assert has_unit or COUNTED.search(stem), "a gauge says what it counts, or its unit"
    if metric.kind == "histogram":
        assert has_unit
    if metric.kind == "counter":
        assert metric.name.endswith("_total")


@pytest.mark.parametrize("case", EVERY, ids=name)
def test_labels_have_few_values(case: tuple[str, Described]) -> None:
    labels = case[1].labels
    assert not UNBOUNDED & set(labels)
    assert len(labels) <= 3
    assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in labels)
    assert not {"le", "quantile", "instance", "service"} & set(labels), "Prometheus's own"


def test_one_name_means_one_thing() -> None:
    known: dict[str, Described] = {}
    for _, metric in EVERY:
        assert known.setdefault(metric.name, metric) == metric


def test_the_document_has_the_catalogue() -> None:
    document = (Path(__file__).parents[3] / "shared/docs/observability.md").read_text()
    _, _, rest = document.partition("<!-- catalogue -->\n")
    assert rest.partition("<!-- end of catalogue -->")[0].strip() == as_markdown().strip()
