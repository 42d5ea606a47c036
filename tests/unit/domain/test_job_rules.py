"""Random histories of a job: the state diagram in the rules' docstring, and no way around it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batch.aggregates.job import (
    Cancel,
    CloseWindow,
    Command,
    Fail,
    Finalize,
    Finish,
    Job,
    JobStatus,
    Start,
    Submit,
    decide,
    evolve,
)
from vllm_batch.errors import AlreadyDone, Rejected
from vllm_batch.events import Event, JobSubmitted, LineError, Recorded, Usage, decode, encode
from vllm_batch.ids import EventId, FileId, JobId, ProjectId

START = datetime(2026, 1, 2, tzinfo=UTC)
TOTAL = 3
SUBMITTED = JobSubmitted(
    job_id=JobId("batch_1"),
    project=ProjectId("p"),
    input_file_id=FileId("file-1"),
    endpoint="/v1/completions",
    completion_window="24h",
    expires_at=86_400,
)
S = JobStatus
EDGES = {
    (None, S.VALIDATING),
    (S.VALIDATING, S.RUNNING),
    (S.VALIDATING, S.FAILED),
    (S.VALIDATING, S.CANCELLING),
    (S.VALIDATING, S.EXPIRING),
    (S.RUNNING, S.CANCELLING),
    (S.RUNNING, S.EXPIRING),
    (S.RUNNING, S.FINALIZING),
    (S.CANCELLING, S.FINALIZING),
    (S.EXPIRING, S.FINALIZING),
    (S.FINALIZING, S.COMPLETED),
    (S.FINALIZING, S.EXPIRED),
    (S.FINALIZING, S.CANCELLED),
}

counts = st.integers(0, TOTAL + 1)
commands: st.SearchStrategy[Command] = st.one_of(
    st.just(Submit(SUBMITTED)),
    st.builds(Start, st.just(TOTAL), st.just(1), st.just("m")),
    st.just(Fail([LineError("empty_file", "The file has no requests.")], 1)),
    st.just(Cancel()),
    st.just(CloseWindow()),
    st.just(Finalize()),
    st.builds(
        Finish,
        total=st.sampled_from([0, TOTAL]),
        completed=counts,
        failed=counts,
        usage=st.just(Usage(1, 0, 1, 0)),
        output_file_id=st.none(),
        error_file_id=st.none(),
    ),
)
steps = st.tuples(commands, st.integers(-100, 100))
histories = st.lists(steps, max_size=30)


def through_the_log(event: Event, seq: int, time: datetime = START) -> Recorded:
    return decode(encode(event, event_id=EventId(f"e{seq}"), source="test", time=time), seq)


def play(history: list[tuple[Command, int]]) -> list[Job]:
    """Return every state the job was in; the clock steps back and forth."""
    states: list[Job] = []
    for command, step in history:
        state = states[-1] if states else None
        try:
            event = decide(state, command)
        except Rejected:
            continue
        time = START + timedelta(seconds=step)
        states.append(evolve(state, through_the_log(event, len(states) + 1, time)))
    return states


@given(histories)
def test_every_move_is_an_edge_of_the_diagram(history: list[tuple[Command, int]]) -> None:
    states = play([(Submit(SUBMITTED), 0), *history])
    moves = zip([None, *(state.status for state in states)], states, strict=False)
    for before, state in moves:
        assert (before, state.status) in EDGES


@given(histories)
def test_times_are_kept_and_never_go_back(history: list[tuple[Command, int]]) -> None:
    states = play([(Submit(SUBMITTED), 0), *history])
    for earlier, later in pairwise(states):
        assert earlier.times.items() <= later.times.items()
        assert later.times[later.status] >= max(earlier.times.values())


@given(histories)
def test_the_outcome_is_decided_once_and_kept(history: list[tuple[Command, int]]) -> None:
    states = play([(Submit(SUBMITTED), 0), *history])
    last = states[-1]
    outcomes = {state.outcome for state in states} - {None}
    assert len(outcomes) <= 1
    if last.ended is not None:
        assert last.outcome == str(last.status)
        assert (last.status is S.CANCELLED) == (S.CANCELLING in last.times)
        assert (last.status is S.EXPIRED) == (S.EXPIRING in last.times)


@given(histories)
def test_totals_of_a_completed_job_add_up(history: list[tuple[Command, int]]) -> None:
    last = play([(Submit(SUBMITTED), 0), *history])[-1]
    if last.ended is not None:
        assert last.ended.total == (last.started.total if last.started else 0)
        assert last.ended.completed + last.ended.failed <= last.ended.total
        if last.status is S.COMPLETED:
            assert last.ended.completed + last.ended.failed == last.ended.total


@given(histories, st.lists(commands, max_size=10))
def test_the_end_is_the_end(history: list[tuple[Command, int]], after: list[Command]) -> None:
    last = play([(Submit(SUBMITTED), 0), *history])[-1]
    if not last.terminal:
        return
    for command in after:
        with pytest.raises(Rejected):
            decide(last, command)


def state_after(*given_commands: Command) -> Job:
    states = play([(command, 0) for command in (Submit(SUBMITTED), *given_commands)])
    assert len(states) == len(given_commands) + 1
    return states[-1]


START_IT = Start(TOTAL, 1, "m")


def test_a_second_cancel_is_already_done_until_the_end() -> None:
    for state in (
        state_after(Cancel()),
        state_after(START_IT, Cancel()),
        state_after(START_IT, Cancel(), Finalize()),
    ):
        with pytest.raises(AlreadyDone):
            decide(state, Cancel())


def test_a_cancel_of_a_job_that_expires_or_writes_its_files_comes_too_late() -> None:
    for state in (state_after(CloseWindow()), state_after(START_IT, Finalize())):
        with pytest.raises(Rejected) as refusal:
            decide(state, Cancel())
        assert not isinstance(refusal.value, AlreadyDone)


def test_a_job_cannot_start_twice_nor_after_it_was_given_up() -> None:
    with pytest.raises(AlreadyDone):
        decide(state_after(START_IT), START_IT)
    with pytest.raises(Rejected):
        decide(state_after(Cancel()), START_IT)


def test_a_total_other_than_the_planned_one_is_refused() -> None:
    finishing = state_after(START_IT, Finalize())
    finish = Finish(
        total=TOTAL - 1, completed=TOTAL - 1, failed=0, usage=Usage(),
        output_file_id=None, error_file_id=None,
    )  # fmt: skip
    with pytest.raises(Rejected):
        decide(finishing, finish)
