"""What tokens would have cost at other prices."""

from __future__ import annotations

import pytest

from batch_admin.price_list import Price
from vllm_batch.usage_report import UsageLine

USED = UsageLine(
    requests=10, failed=1, input_tokens=3_000_000, cached_tokens=1_000_000,
    output_tokens=500_000, reasoning_tokens=0, cost=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        (Price(), 0.0),
        (Price(input=2.0), 6.0),
        (Price(input=2.0, cached=0.5), 4.5),
        (Price(input=2.0, cached=0.0, output=8.0), 8.0),
        (Price(output=8.0), 4.0),
    ],
)
def test_cached_input_has_a_price_of_its_own_where_one_is_given(price: Price, cost: float) -> None:
    assert price.cost(USED) == pytest.approx(cost)
