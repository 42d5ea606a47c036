"""Dashboards and alert rules ask for metrics that there are, by labels that these have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.dashboards import DASHBOARDS, FOLDER, RULES, Query, dashboard, queries, rules

from vllm_batch.metrics.catalogue import SERVICES, described

KNOWN = {metric.name: metric for service in SERVICES for metric in described(service)}
OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")
SELECTOR = re.compile(r"\b(vllm_batch_[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
OF_PROMETHEUS = {"instance", "job", "le"}
OF_BUILD = {"service", "version"}


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.place)
def test_a_query_asks_for_what_there_is(query: Query) -> None:
    selectors = SELECTOR.findall(query.expression)
    for name, matchers in selectors:
        known = KNOWN.get(name) or KNOWN.get(OF_HISTOGRAMS.sub("", name))
        if name == "vllm_batch_build_info":
            labels = OF_BUILD
        else:
            assert known is not None, f"{name} is no metric of ours"
            assert (known.kind == "histogram") == bool(OF_HISTOGRAMS.search(name))
            labels = set(known.labels)
        assert set(MATCHER.findall(matchers)) <= labels | OF_PROMETHEUS
    assert (
        selectors
        or "ALERTS" in query.expression
        or "process_" in query.expression
        or ("up{" in query.expression)
    )


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    model = dashboard(path)
    assert model["uid"] == f"vllm-batch-{path.stem}"
    ids = [panel["id"] for panel in model["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in model["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    known = {variable["name"] for variable in model["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]+)\}?", str(model["panels"]))) <= known


def test_every_dashboard_is_provisioned() -> None:
    assert {path.stem for path in DASHBOARDS} == {
        "overview", "workers", "batches", "online", "labeling",
    }  # fmt: skip
    provider = yaml.safe_load(
        (FOLDER / "grafana/provisioning/dashboards/vllm-batch.yml").read_text()
    )["providers"][0]
    compose = yaml.safe_load((FOLDER.parents[1] / "docker-compose.yml").read_text())
    mounted = [volume.split(":") for volume in compose["services"]["grafana"]["volumes"]]
    ours = next(there for here, there, *_ in mounted if here == "./deploy/observability/grafana")
    assert provider["options"]["path"] == f"{ours}/dashboards"


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_alerts_say_what_to_do(path: Path) -> None:
    names = [rule["alert"] for rule in rules(path)]
    assert len(names) == len(set(names))
    for rule in rules(path):
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "action"}
        assert len(rule["annotations"]["action"]) > 15
