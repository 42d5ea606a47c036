"""How soon a service that died is started again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batch.local.spec import Backoff

units = st.floats(0, 1, exclude_max=True)


@settings(deadline=None)  # a busy machine is no error
@given(units)
def test_the_first_restart_comes_within_half_a_second(unit: float) -> None:
    assert 0.1 < Backoff().delay(1, unit) <= 0.5


@settings(deadline=None)  # a busy machine is no error
@given(st.integers(1, 10_000), units)
def test_the_pause_never_exceeds_its_limit(deaths: int, unit: float) -> None:
    assert 0 < Backoff().delay(deaths, unit) <= 10.0


@settings(deadline=None)  # a busy machine is no error
@given(st.integers(1, 5), units)
def test_the_pause_doubles(deaths: int, unit: float) -> None:
    backoff = Backoff(first=0.1, highest=100.0)
    assert backoff.delay(deaths + 1, unit) == 2 * backoff.delay(deaths, unit)
