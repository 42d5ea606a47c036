"""What a project may ask for in a minute, and what configured limits mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from batch_gateway.api.rates import Rates, Used
from vllm_batch import ids
from vllm_batch.events import Recorded
from vllm_batch.events.project import ProjectConfigured, ProjectPurgeRequested
from vllm_batch.ids import EventId, ProjectId
from vllm_batch.project_limits import Limits, ProjectLimits
from vllm_batch.settings import Settings

A, B = ProjectId("a"), ProjectId("b")


@pytest.fixture
def rates() -> Rates:
    return Rates(lambda: datetime.now(UTC).timestamp())


def test_requests_are_counted_per_project(rates: Rates) -> None:
    limits = Limits(requests_per_minute=2)
    verdicts = [rates.take(A, limits, online=False) for _ in range(3)]
    assert [v.short_of for v in verdicts] == [None, None, "requests"]
    assert [v.headers["x-ratelimit-remaining-requests"] for v in verdicts] == ["1", "0", "0"]
    assert 1 <= verdicts[2].retry_seconds <= 60
    assert verdicts[2].limit == 2
    assert rates.take(B, limits, online=False).short_of is None


def test_tokens_are_counted_when_they_are_known(rates: Rates) -> None:
    limits = Limits(tokens_per_minute=100)
    assert rates.take(A, limits, online=True).short_of is None
    rates.spend(A, limits, 60)
    verdict = rates.take(A, limits, online=True)
    assert verdict.short_of is None
    assert verdict.headers["x-ratelimit-remaining-tokens"] == "40"
    rates.spend(A, limits, 1000)  # more than was left: used up, not an error
    assert rates.take(A, limits, online=True).short_of == "tokens"
    assert rates.take(A, limits, online=False).short_of is None  # a batch waits in its queue


def test_what_other_gateways_let_in_is_used_up(rates: Rates) -> None:
    other = Rates(lambda: datetime.now(UTC).timestamp())
    limits = Limits(requests_per_minute=5, tokens_per_minute=100)
    for _ in range(3):
        other.take(A, limits, online=True)
    other.spend(A, limits, 70)
    for project, used in other.take_unshared().items():
        rates.add_of_others(project, limits, used)
    assert other.take_unshared() == {}
    assert rates.take_unshared() == {}  # it is not told back
    verdict = rates.take(A, limits, online=True)
    assert verdict.headers["x-ratelimit-remaining-requests"] == "1"
    assert verdict.headers["x-ratelimit-remaining-tokens"] == "30"
    rates.add_of_others(A, limits, Used(100, 1000))  # both let in the last ones at the same time
    verdict = rates.take(A, limits, online=True)
    assert (verdict.short_of, verdict.headers["x-ratelimit-remaining-requests"]) == (
        "requests", "0",
    )  # fmt: skip
    assert list(rates.take_unshared().values()) == [Used(requests=1)]  # what was refused is not


def test_without_limits_nothing_is_counted(rates: Rates) -> None:
    assert rates.take(A, Limits(), online=True) == ({}, None, 0, 0)
    rates.spend(A, Limits(), 10)


def configured(**limits: object) -> Recorded:
    event = ProjectConfigured(
        project_key=ids.project_key(A), project=A, requested_by="key_1", **limits
    )
    return Recorded(1, EventId("evt_1"), datetime.now(UTC), "test", event)


def test_what_is_configured_goes_before_the_settings() -> None:
    settings = Settings(project_requests_per_minute=5, project_storage_bytes_max=7)
    limits = ProjectLimits(settings)
    assert limits.of(A) == Limits(5, 0, 0, 7)
    limits.apply(configured(requests_per_minute=0, tokens_per_minute=3))
    assert limits.of(A) == Limits(0, 3, 0, 7)
    assert limits.of(B) == Limits(5, 0, 0, 7)
    limits.apply(configured())
    assert limits.of(A) == Limits(5, 0, 0, 7)


def test_a_project_that_is_to_be_purged_is_closed() -> None:
    limits = ProjectLimits(Settings())
    key = ids.project_key(A)
    event = ProjectPurgeRequested(project_key=key, project=A, requested_by="key_1")
    limits.apply(Recorded(2, EventId("evt_2"), datetime.now(UTC), "test", event))
    assert limits.is_closed(A)
    assert not limits.is_closed(B)
