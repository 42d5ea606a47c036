"""Which worker serves which model: examples, and what holds whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_gateway.orchestrator.placement_policy import Assignment, Demand, Rules, Worker, decide
from vllm_batch.ids import WorkerId

RULES = Rules(residency_seconds=100, spread_chunks=4)
BASES: dict[str, str | None] = {"a": None, "b": None, "c": None}
MODELS = {**BASES, "a-tuned": "a", "b-tuned": "b"}


def worker(name: str, base: str | None, **more: Any) -> Worker:
    return Worker(WorkerId(name), name, base, **more)


def moves(workers: list[Worker], demands: dict[str, Demand]) -> dict[str, str]:
    """Return the base of each worker that is told anything."""
    return {change.worker_id: change.base for change in decide(workers, MODELS, demands, RULES)}


def test_without_work_nothing_moves() -> None:
    assert moves([worker("w1", "a"), worker("w2", None, busy=True)], {}) == {}


def test_an_idle_worker_takes_what_nobody_serves() -> None:
    assert moves([worker("w", "a")], {"b": Demand(ready=1)}) == {"w": "b"}


def test_work_keeps_its_worker_for_the_residency_and_longer_unless_others_are_due_before() -> None:
    demands = {"a": Demand(ready=5, deadline=2), "b": Demand(ready=5, deadline=1)}
    assert moves([worker("w", "a", resident_seconds=99)], demands) == {}
    assert moves([worker("w", "a", resident_seconds=100)], demands) == {"w": "b"}
    assert moves([worker("w", "b", resident_seconds=100)], demands) == {}


def test_a_higher_priority_waits_for_the_residency_only() -> None:
    demands = {"a": Demand(ready=5), "b": Demand(ready=5, priority=1)}
    assert moves([worker("w", "a", resident_seconds=99)], demands) == {}
    assert moves([worker("w", "a", resident_seconds=100)], demands) == {"w": "b"}


def test_what_only_has_to_finish_is_let_finish() -> None:
    demands = {"a": Demand(leased=2), "b": Demand(ready=5)}
    assert moves([worker("w", "a", resident_seconds=1000)], demands) == {}


def test_lower_priority_waits_unless_its_window_is_about_to_close() -> None:
    old = [worker("w", "a", resident_seconds=1000)]
    demands = {"a": Demand(ready=5, priority=1), "b": Demand(ready=5)}
    assert moves(old, demands) == {}
    assert moves(old, demands | {"b": Demand(ready=5, urgent=True)}) == {"w": "b"}


def test_urgent_work_does_not_wait_for_the_residency_nor_takes_from_urgent_work() -> None:
    fresh = [worker("w", "a", resident_seconds=1)]
    urgent = Demand(ready=1, urgent=True)
    assert moves(fresh, {"a": Demand(ready=9), "b": urgent}) == {"w": "b"}
    assert moves(fresh, {"a": urgent, "b": urgent}) == {}


def test_of_two_that_wait_the_earlier_deadline_goes_first() -> None:
    demands = {"b": Demand(ready=1, deadline=20), "c": Demand(ready=1, deadline=10)}
    assert moves([worker("w", "a")], demands) == {"w": "c"}


def test_what_is_wanted_keeps_its_last_worker_until_something_is_urgent() -> None:
    demands = {"a": Demand(wanted=True), "b": Demand(ready=5)}
    idle = worker("w1", "a", resident_seconds=1000)
    assert moves([idle], demands) == {}
    assert moves([idle, worker("w2", "a")], demands) == {"w1": "b"}
    assert moves([idle], demands | {"b": Demand(ready=5, urgent=True)}) == {"w1": "b"}


def test_what_is_wanted_is_loaded_and_on_the_worker_that_was_named() -> None:
    two = [worker("w1", "a"), worker("w2", "a")]
    assert list(moves(two, {"b": Demand(wanted=True)}).values()) == ["b"]
    assert moves(two, {"b": Demand(wanted_on=frozenset({"w2"}))}) == {"w2": "b"}


def test_an_adapter_of_a_base_that_is_loaded_needs_no_swap() -> None:
    changes = decide([worker("w", "a")], MODELS, {"a-tuned": Demand(ready=3)}, RULES)
    assert changes == [Assignment(WorkerId("w"), "a", frozenset({"a-tuned"}))]
    has = worker("w", "a", adapters=frozenset({"a-tuned"}))
    assert decide([has], MODELS, {"a-tuned": Demand(ready=3)}, RULES) == []
    assert decide([has], MODELS, {}, RULES) == []


def test_an_adapter_that_was_retired_is_unloaded() -> None:
    has = worker("w", "a", adapters=frozenset({"a-tuned"}))
    assert decide([has], BASES, {}, RULES) == [Assignment(WorkerId("w"), "a", frozenset())]


def test_an_adapter_brings_its_base() -> None:
    changes = decide([worker("w", "a")], MODELS, {"b-tuned": Demand(ready=1)}, RULES)
    assert changes == [Assignment(WorkerId("w"), "b", frozenset({"b-tuned"}))]


def test_what_a_worker_could_not_load_goes_to_another_or_waits() -> None:
    broken = worker("w1", "a", failed=frozenset({"b"}))
    assert moves([broken], {"b": Demand(ready=1)}) == {}
    assert moves([broken, worker("w2", "a")], {"b": Demand(ready=1)}) == {"w2": "b"}


def test_a_model_of_a_workers_own_configuration_comes_back_there_only() -> None:
    own, other = worker("w1", "b", configured="mine"), worker("w2", "b", configured="a")
    assert moves([own, other], {"mine": Demand(ready=1)}) == {"w1": "mine"}
    assert moves([other], {"mine": Demand(ready=1)}) == {}


def test_more_workers_go_where_much_waits() -> None:
    idle = [worker(f"w{n}", "a") for n in range(3)]
    serving = worker("w9", "b")
    assert moves([serving, *idle], {"b": Demand(ready=3)}) == {}
    assert len(moves([serving, *idle], {"b": Demand(ready=40)})) == 3


def test_a_model_that_was_registered_anew_is_ordered_anew() -> None:
    assert moves([worker("w", "a", stale=True)], {}) == {"w": "a"}


def test_online_requests_keep_their_model_until_others_are_urgent_or_somebody_asks() -> None:
    old = worker("w1", "a", resident_seconds=1000, online=True)
    assert moves([old], {"b": Demand(ready=9, priority=1, deadline=1)}) == {}
    assert moves([replace(old, online=False)], {"b": Demand(ready=1)}) == {"w1": "b"}
    assert moves([old], {"b": Demand(ready=1, urgent=True)}) == {"w1": "b"}
    assert moves([old], {"b": Demand(wanted=True)}) == {"w1": "b"}
    assert moves([old], {"b": Demand(wanted_on=frozenset({"w1"}))}) == {"w1": "b"}


def test_a_worker_without_online_requests_goes_first() -> None:
    busy = worker("w1", "a", resident_seconds=1000, online=True)
    idle = worker("w2", "c", resident_seconds=10)
    for need in (Demand(ready=1), Demand(ready=1, urgent=True), Demand(wanted=True)):
        assert moves([busy, idle], {"b": need}) == {"w2": "b"}
    spare = replace(idle, base="a")
    assert moves([busy, spare], {"b": Demand(ready=1)}) == {"w2": "b"}


def test_one_who_helps_frees_the_one_that_was_named() -> None:
    """All at once: what is decided is not decided again when it is carried out."""
    workers = [worker("w0", "b", resident_seconds=500), *(worker(f"w{n}", "a") for n in (1, 2, 3))]
    demands = {"a-tuned": Demand(wanted_on=frozenset({"w0"})), "b": Demand(ready=4)}
    assert moves(workers, demands) == {"w0": "a", "w1": "b", "w2": "b"}


def test_what_was_registered_anew_and_could_not_be_loaded_is_not_ordered_over_and_over() -> None:
    kept = worker("w", "a", stale=True, failed=frozenset({"a"}))
    assert moves([kept], {}) == {}
    assert moves([kept], {"a": Demand(ready=1), "a-tuned": Demand(ready=1)}) == {}
    assert moves([kept], {"b": Demand(ready=1)}) == {"w": "b"}


DEMAND = st.builds(
    Demand,
    ready=st.integers(0, 30),
    leased=st.integers(0, 5),
    priority=st.integers(-1, 1),
    deadline=st.integers(1, 5).map(float),
    urgent=st.booleans(),
    wanted=st.booleans(),
    wanted_on=st.sampled_from([frozenset(), frozenset({"w0"}), frozenset({"gone"})]),
)
DEMANDS = st.dictionaries(st.sampled_from(sorted(MODELS)), DEMAND)
WORKERS = st.lists(
    st.builds(
        Worker,
        st.just(WorkerId("")),
        st.just(""),
        st.sampled_from(sorted(BASES)),
        resident_seconds=st.sampled_from([0.0, 99.0, 500.0]),
        busy=st.booleans(),
        online=st.booleans(),
        failed=st.sets(st.sampled_from(sorted(MODELS)), max_size=2).map(frozenset),
    ),
    max_size=5,
).map(
    lambda found: [
        replace(one, worker_id=WorkerId(f"w{n}"), name=f"w{n}") for n, one in enumerate(found)
    ]
)


def carried_out(workers: list[Worker], changes: list[Assignment]) -> list[Worker]:
    by_id = {change.worker_id: change for change in changes}
    return [
        one
        if (change := by_id.get(one.worker_id)) is None
        else replace(
            one,
            base=change.base,
            adapters=change.adapters,
            resident_seconds=0.0 if change.base != one.base else one.resident_seconds,
            online=one.online and change.base == one.base,
        )
        for one in workers
    ]


@given(WORKERS, DEMANDS)
def test_a_decision_stands_once_it_is_carried_out(
    workers: list[Worker], demands: dict[str, Demand]
) -> None:
    changes = decide(workers, MODELS, demands, RULES)
    assert len({change.worker_id for change in changes}) == len(changes)
    again = decide(carried_out(workers, changes), MODELS, demands, RULES)
    before = {one.worker_id: one.base for one in carried_out(workers, changes)}
    assert [change for change in again if change.base != before[change.worker_id]] == []


def test_urgent_work_does_not_give_way_to_work_of_a_higher_priority() -> None:
    resting = Worker(WorkerId("w0"), "w0", "b", frozenset({"b-tuned"}), resident_seconds=500.0)
    demands = {
        "a-tuned": Demand(leased=1, priority=1, deadline=1.0),
        "b-tuned": Demand(ready=1, deadline=1.0, urgent=True),
    }
    assert decide([resting], MODELS, demands, RULES) == []


def test_a_worker_that_urgent_work_would_take_back_is_not_given_away() -> None:
    workers = [
        Worker(WorkerId("w0"), "w0", "b", frozenset({"b-tuned"})),
        Worker(WorkerId("w1"), "w1", "b", frozenset({"b-tuned"}), resident_seconds=500.0),
    ]
    demands = {"c": Demand(leased=1), "b-tuned": Demand(ready=4, urgent=True)}
    assert decide(workers, MODELS, demands, RULES) == []
    (change,) = decide(workers, MODELS, demands | {"b-tuned": Demand(ready=3, urgent=True)}, RULES)
    assert (change.worker_id, change.base) == ("w1", "c")


@given(WORKERS, DEMANDS)
def test_no_worker_is_disturbed_without_need(
    workers: list[Worker], demands: dict[str, Demand]
) -> None:
    by_id = {one.worker_id: one for one in workers}
    for change in decide(workers, MODELS, demands, RULES):
        one = by_id[change.worker_id]
        assert not one.busy
        assert change.base not in one.failed or change.base == one.base
        assert not change.adapters & one.failed
        assert all(MODELS[adapter] == change.base for adapter in change.adapters)
        if change.base != one.base:
            asked = [demands[m] for m in demands if (MODELS[m] or m) == change.base]
            assert any(demand.any for demand in asked)


@dataclass
class Machine:
    """Plays workers: each works off one chunk a tick of what it serves; a swap takes ten ticks."""

    workers: list[Worker]
    left: dict[str, int]
    swaps: int = 0
    loading: dict[WorkerId, int] = field(default_factory=dict)

    def tick(self) -> None:
        demands = {model: Demand(ready=count) for model, count in self.left.items() if count}
        changes = decide(self.workers, MODELS, demands, RULES)
        for one, new in zip(self.workers, carried_out(self.workers, changes), strict=True):
            if one.base != new.base:
                self.swaps += 1
                self.loading[one.worker_id] = 10
        after = carried_out(self.workers, changes)
        self.workers = [self._work(one) for one in after]

    def _work(self, one: Worker) -> Worker:
        if ticks := self.loading.get(one.worker_id, 0):
            self.loading[one.worker_id] = ticks - 1
            return replace(one, busy=ticks > 1, resident_seconds=0.0)
        for model in (one.base, *sorted(one.adapters)):
            if model is not None and self.left.get(model):
                self.left[model] -= 1
                break
        return replace(one, resident_seconds=one.resident_seconds + 10)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(sorted(BASES)), min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(sorted(MODELS)), st.integers(1, 60), min_size=1),
)
def test_everything_is_served_in_the_end_and_swaps_stay_few(
    bases: list[str], left: dict[str, int]
) -> None:
    total, kinds = sum(left.values()), len({MODELS[model] or model for model in left})
    machine = Machine([worker(f"w{n}", base) for n, base in enumerate(bases)], dict(left))
    ticks = 0
    while any(machine.left.values()):
        machine.tick()
        ticks += 1
        assert ticks < 20 * (total + 20), machine.left
    # Each base is brought once, and each worker may help once per base.
    assert machine.swaps <= kinds * len(bases)
    if len(bases) == 1:
        assert machine.swaps == len({MODELS[model] or model for model in left} - {*bases})


@given(st.integers(2, 8))
def test_a_stream_of_new_work_starves_nobody(arrivals: int) -> None:
    """Work for one base keeps coming, each with a later deadline; the other gets its turn."""
    one, now, other_is_served = worker("w", "a"), 0, False
    while not other_is_served:
        now += 10
        newest = {"a": Demand(ready=arrivals, deadline=1000 + now - 10 * arrivals)}
        changes = decide([one], MODELS, newest | {"b": Demand(ready=1, deadline=1200)}, RULES)
        other_is_served = [change.base for change in changes] == ["b"]
        one = replace(one, resident_seconds=one.resident_seconds + 10)
        assert now < 1000
