"""Requests that share a prefix come together, where that pays; nothing is lost by it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.orchestrator.arranging import arrange, prefix_gain
from batch_gateway.orchestrator.request_index import RequestIndex


def index_of(prompts: Sequence[bytes], models: Sequence[int] | None = None) -> RequestIndex:
    index = RequestIndex()
    for at, prompt in enumerate(prompts):
        model = models[at] if models else 0
        index.add(at * 10, at * 10 + 10, at + 1, model, memoryview(prompt))
    return index


def runs(values: Sequence[object]) -> int:
    """Return how many runs of equal values there are."""
    return sum(at == 0 or value != values[at - 1] for at, value in enumerate(values))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 100, 256, 700, 5000])), max_size=40),
    st.lists(st.integers(0, 2), min_size=40, max_size=40),
)
def test_any_arrangement_has_every_request_once_and_each_model_in_one_run(
    prompts: list[tuple[int, int]], models: list[int]
) -> None:
    first_seen = list(dict.fromkeys(models[: len(prompts)]))
    numbered = [first_seen.index(model) for model in models[: len(prompts)]]
    index = index_of([bytes([65 + kind]) * size for kind, size in prompts], numbered)
    order = arrange(index, prefix_gain_min=0.000001) or list(range(len(prompts)))
    assert sorted(order) == list(range(len(prompts)))
    assert runs([numbered[at] for at in order]) == len(set(numbered))


def test_groups_come_in_the_order_of_their_first_request_and_keep_the_files_order() -> None:
    prompts = [bytes([65 + kind]) * 300 + str(at).encode() for at, kind in enumerate([2, 0, 2, 1])]
    assert arrange(index_of(prompts), prefix_gain_min=0.1) == [0, 2, 1, 3]


def test_groups_within_groups_stay_together() -> None:
    """A long template, then one of two documents, then a question."""
    rng = random.Random(5)
    template = b"t" * 300
    documents = [b"d" * 900, b"e" * 900]
    kinds = [rng.randrange(2) for _ in range(40)]
    others = [b"o" * 1200] * 40
    prompts = [template + documents[kind] + str(at).encode() for at, kind in enumerate(kinds)]
    mixed = [text for pair in zip(prompts, others, strict=True) for text in pair]
    order = arrange(index_of(mixed), prefix_gain_min=0.1)
    assert order is not None
    assert runs([mixed[at][:1200] for at in order]) == 3
    assert runs([mixed[at][:300] for at in order]) == 2


def test_a_prefix_that_all_share_or_nobody_leaves_the_file_as_it_is() -> None:
    same = [b"s" * 2000 + str(at).encode() for at in range(20)]
    different = [f"{at:03} ".encode() * 300 for at in range(20)]
    sorted_already = sorted(bytes([65 + at % 4]) * 500 for at in range(20))
    short = [bytes([65 + at % 2]) * 200 for at in range(20)]
    for prompts in (same, different, sorted_already, short, []):
        index = index_of(prompts)
        assert prefix_gain(index) == 0
        assert arrange(index, prefix_gain_min=0.000001) is None


def test_a_gain_below_the_limit_does_not_pay() -> None:
    prompts = [bytes([65 + at % 2]) * 300 + str(at).encode() * 5000 for at in range(20)]
    index = index_of(prompts)
    assert 0 < prefix_gain(index) < 0.1
    assert arrange(index, prefix_gain_min=0.1) is None


def test_the_gain_is_the_part_of_all_bytes_that_becomes_shared_with_the_request_before() -> None:
    index = index_of([bytes([65 + at % 2]) * 512 for at in range(20)])
    assert prefix_gain(index) == 18 / 20


def test_models_are_kept_apart_with_grouping_by_prefix_turned_off() -> None:
    prompts = [bytes([65 + at % 2]) * 512 for at in range(6)]
    assert arrange(index_of(prompts), prefix_gain_min=None) is None
    index = index_of(prompts, [0, 1, 1, 0, 0, 1])
    assert arrange(index, prefix_gain_min=None) == [0, 3, 4, 1, 2, 5]
