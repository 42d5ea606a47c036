"""Adding usage up: by day, project, key, model, kind, batch, in any combination. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args

import msgspec

from vllm_batch.errors import InvalidInput
from vllm_batch.projections.rows import UsageRow

Group = Literal["day", "project", "key", "model", "kind", "batch"]
GROUPS: tuple[Group, ...] = get_args(Group)
DAYS_MAX = 366
_COUNTS = (
    "requests",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "engine_seconds",
    "gpu_seconds",
    "energy_joules",
    "cost",
)
_FIELDS: dict[Group, str] = {
    "day": "day", "project": "project", "key": "key_id", "model": "model", "kind": "kind",
    "batch": "job_id",
}  # fmt: skip


class UsageLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sum; what it was not grouped by is None. ``cost`` is in the currency of the prices, seconds
    and energy are those of batches."""

    day: str | None = None
    project: str | None = None
    key: str | None = None
    model: str | None = None
    kind: str | None = None
    batch: str | None = None
    requests: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float = 0.0
    cost: float


def add_up(rows: Iterable[UsageRow], groups: Sequence[Group]) -> list[UsageLine]:
    """Return one line per combination of ``groups``, in their order; a single sum without any."""
    sums: dict[tuple[str | None, ...], list[float]] = {}
    for row in rows:
        key = tuple(getattr(row, _FIELDS[group]) for group in groups)
        counts = sums.setdefault(key, [0] * len(_COUNTS))
        for place, name in enumerate(_COUNTS):
            counts[place] += getattr(row, name)
    lines = []
    for key, counts in sorted(sums.items(), key=lambda entry: [k or "" for k in entry[0]]):
        fields: dict[str, object] = dict(zip(groups, key, strict=True))
        fields.update(zip(_COUNTS, counts, strict=True))
        lines.append(msgspec.convert(fields, UsageLine))
    return lines


def as_csv(lines: Iterable[UsageLine], groups: Sequence[Group]) -> str:
    """Return the lines as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*groups, *_COUNTS])
    for line in lines:
        writer.writerow([_cell(getattr(line, name)) for name in (*groups, *_COUNTS)])
    return text.getvalue()


def _cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula is marked as text."""
    if isinstance(value, str) and value[:1] in "=+-@\t\r":
        return "'" + value
    return "" if value is None else value


def period(start: str, end: str, now: datetime) -> tuple[int, int]:
    """Return [since, until) in Unix seconds of two days (``2026-01-31``, UTC), the last included.

    Without ``start``: the month of ``end``; without ``end``: today.

    Raises:
        InvalidInput: one is no day, or they are the wrong way round or too far apart.
    """
    last = _day(end, "to") if end else now.astimezone(UTC).date()
    first = _day(start, "from") if start else last.replace(day=1)
    if first > last:
        raise InvalidInput(f"'from' ({first}) is after 'to' ({last}).", param="from")
    if (last - first).days >= DAYS_MAX:
        raise InvalidInput(f"At most {DAYS_MAX} days can be asked for at once.", param="from")
    midnight = datetime(first.year, first.month, first.day, tzinfo=UTC)
    since = int(midnight.timestamp())
    return since, since + int(timedelta(days=(last - first).days + 1).total_seconds())


def _day(text: str, param: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            f"Invalid value for '{param}': {text[:40]!r} is no day such as 2026-01-31.", param=param
        ) from None


def checked_groups(names: Sequence[str]) -> list[Group]:
    """Return what to group by, each once. Raises InvalidInput."""
    found: list[Group] = []
    for name in names:
        match = next((group for group in GROUPS if group == name), None)
        if match is None:
            raise InvalidInput(
                f"Invalid value for 'group_by': {name[:40]!r} is none of {', '.join(GROUPS)}.",
                param="group_by",
            )
        if match not in found:
            found.append(match)
    return found
