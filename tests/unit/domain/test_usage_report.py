"""Usage added up, as CSV, and the days that a report is about."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from vllm_batch import usage_report
from vllm_batch.errors import InvalidInput
from vllm_batch.ids import KeyId, ProjectId
from vllm_batch.projections.rows import UsageRow

NOW = datetime(2026, 3, 15, 23, 59, tzinfo=UTC)


def row(day: str, project: str, model: str, cost: float, key: str | None = "key_1") -> UsageRow:
    return UsageRow(
        day=day, project=ProjectId(project), key_id=KeyId(key) if key else None, model=model,
        kind="batch", requests=2, failed=1, input_tokens=10, cached_tokens=4, output_tokens=5,
        reasoning_tokens=0, cost=cost,
    )  # fmt: skip


ROWS = [
    row("2026-03-01", "a", "m", 1.5),
    row("2026-03-02", "a", "m", 0.5),
    row("2026-03-02", "b", "=m", 0.25, None),
]


def test_rows_are_added_up_by_what_is_asked_for() -> None:
    by_project = usage_report.add_up(ROWS, ["project"])
    assert [(line.project, line.requests, line.cost) for line in by_project] == [
        ("a", 4, 2.0), ("b", 2, 0.25),
    ]  # fmt: skip
    by_day = usage_report.add_up(ROWS, ["day", "model"])
    assert [(line.day, line.model) for line in by_day] == [
        ("2026-03-01", "m"), ("2026-03-02", "=m"), ("2026-03-02", "m"),
    ]  # fmt: skip
    [total] = usage_report.add_up(ROWS, [])
    assert (total.requests, total.input_tokens, total.cost, total.day) == (6, 30, 2.25, None)
    assert usage_report.add_up([], []) == []
    assert [line.key for line in usage_report.add_up(ROWS, ["key"])] == [None, "key_1"]


def test_a_spreadsheet_takes_no_name_for_a_formula() -> None:
    text = usage_report.as_csv(usage_report.add_up(ROWS, ["model"]), ["model"])
    lines = text.splitlines()
    assert lines[0].startswith("model,requests,failed,input_tokens")
    assert lines[1].startswith("'=m,2,1,10,4,5,0,0.0,0.0,0.0,0.25")
    assert len(lines) == 3


def days(start: str, end: str) -> tuple[str, str]:
    since, until = usage_report.period(start, end, NOW)
    return tuple(datetime.fromtimestamp(t, UTC).isoformat() for t in (since, until))  # type: ignore[return-value]


def test_the_period_is_the_month_unless_days_are_given() -> None:
    assert days("", "") == ("2026-03-01T00:00:00+00:00", "2026-03-16T00:00:00+00:00")
    assert days("2026-02-28", "2026-02-28")[1].startswith("2026-03-01")
    assert days("", "2026-01-31")[0].startswith("2026-01-01")


@pytest.mark.parametrize(
    ("start", "end", "param"),
    [("soon", "", "from"), ("", "2026-13-01", "to"), ("2026-03-16", "", "from"),
     ("2024-01-01", "2026-01-01", "from")],
)  # fmt: skip
def test_what_is_no_period_is_refused(start: str, end: str, param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        usage_report.period(start, end, NOW)
    assert refused.value.param == param


def test_groups_are_checked() -> None:
    assert usage_report.checked_groups(["model", "day", "model"]) == ["model", "day"]
    with pytest.raises(InvalidInput, match="weather"):
        usage_report.checked_groups(["weather"])
