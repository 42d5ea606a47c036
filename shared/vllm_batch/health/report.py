"""What a look at the system found: plain data."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

Severity = Literal["warning", "critical"]
Status = Literal["ok", "warning", "critical", "unknown"]
Overall = Literal["ok", "degraded", "failing"]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong, and what to do about it. ``critical``: work stands still."""

    severity: Severity
    what: str
    action: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. ``unknown``: it could not be; ``summary`` says how it is."""

    name: str
    status: Status
    summary: str
    problems: list[Problem] = []


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was looked at. ``degraded``: something is to be done; ``failing``: something
    stands still."""

    status: Overall
    time: datetime
    checks: list[Check]

    @property
    def problems(self) -> list[Problem]:
        """What is wrong, the worst first."""
        found = [problem for check in self.checks for problem in check.problems]
        return sorted(found, key=lambda problem: problem.severity != "critical")


def check_of(name: str, summary: str, problems: list[Problem] | None = None) -> Check:
    """Return a check with the status that its problems make."""
    found = problems or []
    worst: Status = "ok"
    if found:
        worst = "critical" if any(one.severity == "critical" for one in found) else "warning"
    return Check(name=name, status=worst, summary=summary, problems=found)


def report_of(time: datetime, checks: list[Check]) -> HealthReport:
    """Return the report that checks make; what could not be looked at is no good sign either."""
    statuses = {check.status for check in checks}
    status: Overall = "ok"
    if statuses & {"warning", "unknown"}:
        status = "degraded"
    if "critical" in statuses:
        status = "failing"
    return HealthReport(status=status, time=time, checks=checks)


def warning(what: str, action: str) -> Problem:
    """Return something that is to be looked at soon."""
    return Problem(severity="warning", what=what, action=action)


def critical(what: str, action: str) -> Problem:
    """Return something that work stands still for."""
    return Problem(severity="critical", what=what, action=action)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return ``1 batch``, ``2 batches``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
