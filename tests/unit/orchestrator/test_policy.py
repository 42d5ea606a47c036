"""Who is served next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batch_gateway.orchestrator.policy import Candidate, share_out
from vllm_batch.ids import JobId, ProjectId


def job(name: str, waiting: int = 100, under_way: int = 0, **changes: object) -> Candidate:
    fields: dict[str, object] = {
        "project": ProjectId("p"), "priority": 0, "deadline": 1000, "submitted_seq": ord(name[-1]),
        **changes,
    }  # fmt: skip
    return Candidate(job_id=JobId(name), waiting=waiting, under_way=under_way, **fields)  # type: ignore[arg-type]


def test_a_small_job_behind_a_large_one_is_next() -> None:
    assert share_out([job("large", under_way=6), job("small", waiting=1)], 2) == ["small", "large"]


def test_jobs_take_turns() -> None:
    assert share_out([job("a"), job("b"), job("c")], 7) == ["a", "b", "c", "a", "b", "c", "a"]


def test_higher_priority_goes_first_whatever_it_has_already() -> None:
    turns = share_out([job("low"), job("high", waiting=3, under_way=50, priority=5)], 5)
    assert turns == ["high", "high", "high", "low", "low"]


def test_the_earlier_deadline_goes_first_among_equals() -> None:
    assert share_out([job("a", deadline=900), job("b", deadline=500)], 2) == ["b", "a"]


def test_tenants_share_before_jobs_do() -> None:
    many = [job(name, project=ProjectId("greedy")) for name in ("a", "b", "c")]
    turns = share_out([*many, job("z", project=ProjectId("modest"))], 6)
    assert turns.count("z") == 3  # type: ignore[comparison-overlap]
    assert sorted(turns) == ["a", "b", "c", "z", "z", "z"]


def test_work_under_way_counts_for_the_tenant_even_where_nothing_waits() -> None:
    busy = job("a", waiting=0, under_way=4, project=ProjectId("busy"))
    turns = share_out(
        [busy, job("b", project=ProjectId("busy")), job("c", project=ProjectId("idle"))], 4
    )
    assert turns == ["c", "c", "c", "c"]


candidates = st.lists(
    st.builds(
        Candidate,
        job_id=st.text("abcdef", min_size=1, max_size=3).map(JobId),
        project=st.sampled_from([ProjectId("p"), ProjectId("q")]),
        priority=st.integers(-1, 1),
        deadline=st.integers(0, 5),
        submitted_seq=st.integers(0, 100),
        waiting=st.integers(0, 4),
        under_way=st.integers(0, 4),
    ),
    max_size=8,
    unique_by=lambda candidate: candidate.job_id,
)


@given(candidates, st.integers(0, 20))
def test_slots_are_used_up_and_nobody_gets_more_than_it_has(
    given_candidates: list[Candidate], slots: int
) -> None:
    turns = share_out(given_candidates, slots)
    waiting = {candidate.job_id: candidate.waiting for candidate in given_candidates}
    assert len(turns) == min(slots, sum(waiting.values()))
    for job_id in set(turns):
        assert turns.count(job_id) <= waiting[job_id]


@given(candidates, st.integers(1, 20))
def test_nobody_waits_for_a_lower_priority(given_candidates: list[Candidate], slots: int) -> None:
    priority = {candidate.job_id: candidate.priority for candidate in given_candidates}
    served = [priority[job_id] for job_id in share_out(given_candidates, slots)]
    assert served == sorted(served, reverse=True)
