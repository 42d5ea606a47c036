"""A model's history: what people ask for, what workers report, and what each name means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import START

from vllm_batch import ids
from vllm_batch.aggregates.model import Model, Order, Prices, Report, decide, decide_report, evolve
from vllm_batch.errors import AlreadyDone, NotFound, Rejected
from vllm_batch.events import Event, Recorded
from vllm_batch.events.model import (
    ModelAliased,
    ModelFailed,
    ModelLoading,
    ModelLoadRequested,
    ModelPriced,
    ModelReady,
    ModelRegistered,
    ModelRetired,
    ModelUnloaded,
    ModelUnloadRequested,
)
from vllm_batch.ids import EventId, WorkerId
from vllm_batch.model_registry import ModelRegistry

W1, W2 = WorkerId("worker_1"), WorkerId("worker_2")


def registered(
    name: str = "m", source: str = "org/m", aliases: tuple[str, ...] = ()
) -> ModelRegistered:
    return ModelRegistered(
        model_key=ids.model_key(name), name=name, source=source, aliases=list(aliases),
        input_price_per_million=0.1, requested_by="cli:me",
    )  # fmt: skip


def aliased(name: str, *aliases: str) -> ModelAliased:
    return ModelAliased(model_key=ids.model_key(name), aliases=list(aliases), requested_by="key_1")


def retired(name: str = "m") -> ModelRetired:
    return ModelRetired(model_key=ids.model_key(name), requested_by="key_1")


def load(worker: str | None = None) -> ModelLoadRequested:
    return ModelLoadRequested(model_key=ids.model_key("m"), worker=worker, requested_by="key_1")


def unload(worker: str | None = None) -> ModelUnloadRequested:
    return ModelUnloadRequested(model_key=ids.model_key("m"), worker=worker, requested_by="key_1")


def report(cls: type[Report], worker: WorkerId = W1, **more: str) -> Report:
    return cls(model_key=ids.model_key("m"), worker_id=worker, worker_name="gpu-1", **more)  # type: ignore[arg-type]


def priced(amount: float | None) -> ModelPriced:
    return ModelPriced(
        model_key=ids.model_key("m"), input_price_per_million=amount,
        output_price_per_million=None, requested_by="key_1",
    )  # fmt: skip


def recorded(*events: Event) -> list[Recorded]:
    return [Recorded(n, EventId(f"evt_{n}"), START, "test", e) for n, e in enumerate(events, 1)]


def model(*events: Event) -> Model:
    state: Model | None = None
    for one in recorded(*events):
        state = evolve(state, one)
    assert state is not None
    return state


def registry(*events: Event) -> ModelRegistry:
    found = ModelRegistry()
    for one in recorded(*events):
        found.apply(one)
    return found


def test_what_is_wanted_of_a_model() -> None:
    assert not model(registered()).wanted
    assert model(registered(), load()).wanted_anywhere
    on_one = model(registered(), load("gpu-1"), load("gpu-2"), unload("gpu-2"))
    assert (on_one.wanted, on_one.wanted_anywhere) == (True, False)
    assert on_one.wanted_on == {"gpu-1"}
    assert not model(registered(), load(), load("gpu-1"), unload()).wanted


@pytest.mark.parametrize(
    ("history", "order", "refusal"),
    [
        ((), load(), NotFound),
        ((registered(), retired()), load(), NotFound),
        ((registered(), retired()), retired(), NotFound),
        ((), aliased("m", "a"), NotFound),
        ((registered(), load()), load(), AlreadyDone),
        ((registered(), load("gpu-1")), load("gpu-1"), AlreadyDone),
        ((registered(),), unload(), AlreadyDone),
        ((registered(), load()), unload("gpu-1"), AlreadyDone),
        ((registered(), priced(2.0)), priced(2.0), AlreadyDone),
    ],
)
def test_orders_that_are_refused(
    history: tuple[Event, ...], order: Order, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal, match=r"m"):
        decide(model(*history) if history else None, order)


def test_asking_again_after_a_failure_is_another_try() -> None:
    failed = model(registered(), load(), report(ModelFailed, reason="out of memory"))
    assert decide(failed, load()) == load()
    again = model(registered(), load(), report(ModelFailed, reason="out of memory"), load())
    assert (again.failed, again.wanted) == ({}, True)


@pytest.mark.parametrize(
    "order", [registered(), load("gpu-2"), unload(), priced(None), retired(), aliased("m")]
)
def test_orders_that_change_something_are_recorded(order: Order) -> None:
    assert decide(model(registered(), load()), order) is order


def test_workers_report() -> None:
    failed = report(ModelFailed, W2, reason="CUDA out of memory")
    state = model(registered(), report(ModelLoading), report(ModelLoading, W2), failed)
    assert state.loading_on == {W1}
    assert state.failed == {W2: "CUDA out of memory"}
    state = model(registered(), failed, report(ModelReady, W2), report(ModelReady))
    assert (state.ready_on, state.failed) == ({W1, W2}, {})
    gone = report(ModelUnloaded, reason="swapped")
    assert model(registered(), report(ModelReady), gone).ready_on == frozenset()


@pytest.mark.parametrize(
    ("history", "said", "refusal"),
    [
        ((), report(ModelReady), Rejected),
        ((registered(), report(ModelLoading)), report(ModelLoading), AlreadyDone),
        ((registered(), report(ModelReady)), report(ModelReady), AlreadyDone),
        ((registered(),), report(ModelUnloaded, reason="swapped"), AlreadyDone),
        (
            (registered(), report(ModelFailed, reason="x")),
            report(ModelFailed, reason="x"),
            AlreadyDone,
        ),
    ],
)
def test_reports_that_say_nothing_new(
    history: tuple[Event, ...], said: Report, refusal: type[Rejected]
) -> None:
    with pytest.raises(Rejected) as raised:
        decide_report(model(*history) if history else None, said)
    assert type(raised.value) is refusal


def test_a_retired_model_is_still_loaded_and_unloaded_for_what_runs_of_it() -> None:
    said: Report = report(ModelUnloaded, reason="retired")
    assert decide_report(model(registered(), report(ModelReady), retired()), said) is said
    said = report(ModelLoading)
    assert decide_report(model(registered(), retired()), said) is said


def test_registering_again_replaces_what_it_is_made_of() -> None:
    history = (registered(), load(), report(ModelReady), priced(9.0))
    same = model(*history, registered())
    assert (same.wanted, same.ready_on, same.prices) == (True, {W1}, Prices(0.1))
    other = model(*history, registered(source="org/m2"))
    assert (other.wanted, other.ready_on, other.source) == (True, frozenset(), "org/m2")
    assert not model(*history, retired(), registered()).wanted


def test_names_and_aliases_are_resolved() -> None:
    known = registry(registered("a/b", aliases=("fast", "default")), registered("c"))
    assert (known.resolve("a/b"), known.resolve("fast"), known.resolve("c")) == ("a/b", "a/b", "c")
    assert known.resolve("nobody") is None
    assert known.aliases() == {"fast": "a/b", "default": "a/b"}
    assert [one.name for one in known.all()] == ["a/b", "c"]


def test_an_alias_means_who_was_given_it_last() -> None:
    known = registry(registered("v1", aliases=("s",)), registered("v2"), aliased("v2", "s"))
    assert known.resolve("s") == "v2"
    taken_from = known.find("v1")
    assert taken_from is not None
    assert taken_from.aliases == []
    back = registry(
        registered("v1", aliases=("s",)), registered("v2", aliases=("s",)), aliased("v1", "s")
    )
    assert back.resolve("s") == "v1"


def test_a_name_goes_before_an_alias() -> None:
    assert registry(registered("a", aliases=("b",)), registered("b")).resolve("b") == "b"


def test_a_retired_model_means_nothing() -> None:
    known = registry(registered("m", aliases=("s",)), retired())
    assert (known.resolve("m"), known.resolve("s"), known.all()) == (None, None, [])
    found = known.find("m")
    assert found is not None
    assert found.retired


def test_what_is_folded_in_already_changes_nothing() -> None:
    history = recorded(registered(), load(), unload())
    known = ModelRegistry()
    for one in (*history, *history):
        known.apply(one)
    found = known.find("m")
    assert found is not None
    assert not found.wanted
    assert known.position == 3


def test_reports_of_a_model_that_nobody_registered_change_nothing() -> None:
    known = registry(report(ModelReady), registered())
    found = known.find("m")
    assert found is not None
    assert found.ready_on == frozenset()


names = st.sampled_from(["a", "b", "c"])
alias_lists = st.lists(st.sampled_from(["x", "y"]), unique=True, max_size=2)
changes = st.one_of(
    st.builds(lambda n, a: registered(n, aliases=tuple(a)), names, alias_lists),
    st.builds(lambda n, a: aliased(n, *a), names, alias_lists),
    st.builds(retired, names),
)


@given(st.lists(changes, max_size=12))
def test_every_alias_means_one_living_model_that_has_it(orders: list[Order]) -> None:
    known = ModelRegistry()
    states: dict[str, Model] = {}
    for number, order in enumerate(orders, 1):
        try:
            event = decide(states.get(order.model_key), order)
        except NotFound:
            continue
        one = Recorded(number, EventId(f"evt_{number}"), START, "test", event)
        states[order.model_key] = evolve(states.get(order.model_key), one)
        known.apply(one)
    listed = {alias: one.name for one in known.all() for alias in one.aliases}
    assert listed == known.aliases()
    assert sum(len(one.aliases) for one in known.all()) == len(listed)
