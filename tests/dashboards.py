"""The queries of dashboards and alert rules, as the files have them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "observability"
DASHBOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((FOLDER / "rules").glob("*.yml"))
_VARIABLES = {
    "$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h",
    "$model": ".*", "$instance": ".*",
}  # fmt: skip


class Query(NamedTuple):
    """An expression and where it is from."""

    place: str
    expression: str


def dashboard(path: Path) -> dict[str, Any]:
    """Return a dashboard's model."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rules(path: Path) -> list[dict[str, Any]]:
    """Return the alert rules of a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[Query]:
    """Return every query, with Grafana's variables filled in."""
    return [*_of_dashboards(), *_of_rules()]


def _of_dashboards() -> Iterator[Query]:
    for path in DASHBOARDS:
        for panel in dashboard(path)["panels"]:
            for target in panel["targets"]:
                place = f"{path.stem}: {panel['title']} {target['refId']}"
                yield Query(place, filled(target["expr"]))


def _of_rules() -> Iterator[Query]:
    for path in RULES:
        for rule in rules(path):
            yield Query(f"{path.stem}: {rule['alert']}", rule["expr"])


def filled(expression: str) -> str:
    """Return an expression with values in the place of variables."""
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in re.sub(r"\$\{?datasource\}?", "", expression), expression
    return expression
