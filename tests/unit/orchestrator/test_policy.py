"""Who is served next: known cases, and random ones against the rule in its plainest form."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.orchestrator.bench import job_submitted

from batch_gateway.orchestrator.policy import Backlog
from vllm_batch.ids import JobId, ProjectId


@dataclass
class Share:
    """A job as a test knows it."""

    name: str
    waiting: int = 100
    under_way: int = 0
    project: str = "p"
    priority: int = 0
    deadline: int = 1000
    seq: int = 0

    def put(self, backlog: Backlog) -> None:
        submitted = job_submitted(
            self.name,
            project=ProjectId(self.project),
            priority=self.priority,
            expires_at=self.deadline,
        )
        backlog.update(
            submitted, self.seq or ord(self.name[0]), waiting=self.waiting, under_way=self.under_way
        )


def turns(backlog: Backlog, slots: int) -> list[str]:
    taken = [backlog.take() for _ in range(slots)]
    return [job_id.removeprefix("batch_") for job_id in taken if job_id is not None]


def served(slots: int, *jobs: Share) -> list[str]:
    backlog = Backlog()
    for job in jobs:
        job.put(backlog)
    return turns(backlog, slots)


def test_a_small_job_behind_a_large_one_is_next() -> None:
    large, small = Share("large", under_way=6), Share("small", waiting=1)
    assert served(2, large, small) == ["small", "large"]


def test_jobs_take_turns() -> None:
    assert served(7, Share("a"), Share("b"), Share("c")) == ["a", "b", "c", "a", "b", "c", "a"]


def test_higher_priority_goes_first_whatever_it_has_already() -> None:
    high = Share("high", waiting=3, under_way=50, priority=5)
    assert served(5, Share("low"), high) == ["high", "high", "high", "low", "low"]


def test_the_earlier_deadline_goes_first_among_equals() -> None:
    assert served(2, Share("a", deadline=900), Share("b", deadline=500)) == ["b", "a"]


def test_tenants_share_before_jobs_do() -> None:
    many = [Share(name, project="greedy") for name in ("a", "b", "c")]
    order = served(6, *many, Share("z", project="modest"))
    assert sorted(order) == ["a", "b", "c", "z", "z", "z"]


def test_work_under_way_counts_for_the_tenant_even_where_nothing_waits() -> None:
    busy = Share("a", waiting=0, under_way=4, project="busy")
    order = served(4, busy, Share("b", project="busy"), Share("c", project="idle"))
    assert order == ["c", "c", "c", "c"]


def test_a_job_that_is_removed_gets_no_turn_and_frees_its_tenant_s_share() -> None:
    backlog = Backlog()
    Share("a", under_way=9, project="x").put(backlog)
    Share("b", project="x").put(backlog)
    Share("c", project="y", under_way=1).put(backlog)
    backlog.remove(job_submitted("a").job_id)
    backlog.remove(job_submitted("a").job_id)
    assert turns(backlog, 2) == ["b", "b"]


def plainly(jobs: dict[str, Share]) -> str | None:
    """The rule, without any cleverness."""
    shares: dict[tuple[int, str], int] = {}
    for job in jobs.values():
        shares[job.priority, job.project] = (
            shares.get((job.priority, job.project), 0) + job.under_way
        )
    waiting = [job for job in jobs.values() if job.waiting > 0]
    if not waiting:
        return None
    chosen = min(
        waiting,
        key=lambda job: (
            -job.priority,
            shares[job.priority, job.project],
            job.under_way,
            job.deadline,
            job.seq,
        ),
    )
    return chosen.name


names = st.sampled_from("abcdef")
changes = st.lists(
    st.one_of(
        st.tuples(st.just("take"), names, st.just(0), st.just(0)),
        st.tuples(st.just("remove"), names, st.just(0), st.just(0)),
        st.tuples(st.just("update"), names, st.integers(0, 4), st.integers(0, 4)),
    ),
    max_size=60,
)


@given(
    st.lists(
        st.tuples(st.sampled_from("pq"), st.integers(-1, 1), st.integers(0, 2)),
        min_size=6,
        max_size=6,
    ),
    changes,
)
def test_it_follows_the_rule_through_any_history(
    kinds: list[tuple[str, int, int]], history: list[tuple[str, str, int, int]]
) -> None:
    backlog = Backlog()
    jobs: dict[str, Share] = {}
    for what, name, waiting, under_way in history:
        if what == "update":
            number = ord(name) - ord("a")
            project, priority, deadline = kinds[number]
            jobs[name] = Share(
                name, waiting, under_way, project, priority, deadline, seq=number + 1
            )
            jobs[name].put(backlog)
        elif what == "remove":
            jobs.pop(name, None)
            backlog.remove(job_submitted(name).job_id)
        else:
            wanted = plainly(jobs)
            assert turns(backlog, 1) == ([] if wanted is None else [wanted])
            if wanted is not None:
                jobs[wanted].waiting -= 1
                jobs[wanted].under_way += 1


def waits_behind(*jobs: Share, offered: str) -> bool:
    backlog = Backlog()
    for job in jobs:
        job.put(backlog)
    return backlog.waits_behind(JobId(f"batch_{name}") for name in offered.split())


def test_a_newcomer_is_not_to_wait_behind_what_another_job_was_offered() -> None:
    large, small = Share("large", under_way=6), Share("small", waiting=1)
    assert waits_behind(large, small, offered="large large")
    assert waits_behind(large, Share("small", waiting=1, project="q"), offered="large")
    begun = Share("small", waiting=1, under_way=1)
    assert not waits_behind(large, begun, offered="large")
    assert not waits_behind(Share("large", under_way=1), small, offered="large")
    assert not waits_behind(large, Share("small", waiting=0), offered="large")
    assert not waits_behind(large, small, offered="gone")


def test_nor_behind_one_of_less_priority() -> None:
    low, high = Share("low", under_way=1), Share("high", under_way=3, priority=1)
    assert waits_behind(low, high, offered="low")
    assert not waits_behind(low, high, offered="high")
