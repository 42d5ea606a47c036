"""Random histories of a chunk: whatever is asked of it in whatever order, its promises hold."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from vllm_batch.aggregates.chunk import (
    Chunk,
    ChunkStatus,
    Close,
    Command,
    Complete,
    Lease,
    Plan,
    Record,
    Release,
    decide,
    evolve,
)
from vllm_batch.errors import Rejected
from vllm_batch.events import (
    ChunkClosed,
    ChunkCompleted,
    ChunkLeased,
    ChunkPlanned,
    ChunkProgressed,
    ChunkReleased,
    Event,
    Recorded,
    Segment,
    Usage,
    decode,
    encode,
)
from vllm_batch.ids import EventId, JobId, WorkerId

START = datetime(2026, 1, 2, tzinfo=UTC)
REQUESTS = 6
PLANNED = ChunkPlanned(
    job_id=JobId("batch_1"),
    chunk=7,
    blob="files/file-1",
    offset=0,
    length=600,
    first_line=1,
    count=REQUESTS,
    endpoint="/v1/completions",
    model="m",
)

epochs = st.integers(0, 5)
small = st.integers(0, 4)
usages = st.builds(Usage, small, small, small, small)
segments = st.builds(Segment, st.text("ab", max_size=3), small, small, small)
commands: st.SearchStrategy[Command] = st.one_of(
    st.just(Plan(PLANNED)),
    st.builds(Lease, st.sampled_from([WorkerId("w1"), WorkerId("w2"), WorkerId("w3")])),
    st.builds(Record, epochs, segments, usages),
    st.builds(Complete, epochs, st.none() | segments, usages),
    st.builds(Release, epochs, st.sampled_from(["drained", "worker_lost", "error"])),
    st.builds(Close, st.sampled_from(["cancelled", "expired", "stuck"])),
)
histories = st.lists(commands, max_size=40)


def through_the_log(event: Event, seq: int) -> Recorded:
    payload = encode(event, event_id=EventId(f"evt_{seq}"), source="test", time=START)
    return decode(payload, seq)


def play(history: list[Command]) -> tuple[Chunk | None, list[tuple[Command, Event]]]:
    state: Chunk | None = None
    accepted: list[tuple[Command, Event]] = []
    for command in history:
        try:
            event = decide(state, command)
        except Rejected:
            continue
        state = evolve(state, through_the_log(event, len(accepted) + 1))
        accepted.append((command, event))
        check(state)
    return state, accepted


def check(state: Chunk) -> None:
    assert 0 <= state.completed + state.failed <= REQUESTS
    assert state.remaining == REQUESTS - state.completed - state.failed
    assert (state.worker_id is not None) == (state.status is ChunkStatus.LEASED)
    if state.status is ChunkStatus.COMPLETED:
        assert state.remaining == 0
    assert state.terminal == (state.status in {ChunkStatus.COMPLETED, ChunkStatus.CLOSED})


@given(histories)
def test_an_epoch_has_one_owner_and_epochs_count_up_from_one(history: list[Command]) -> None:
    _, accepted = play([Plan(PLANNED), *history])
    leases = [event for _, event in accepted if isinstance(event, ChunkLeased)]
    assert [event.epoch for event in leases] == list(range(1, len(leases) + 1))


@given(histories)
def test_only_the_holder_of_the_current_epoch_records(history: list[Command]) -> None:
    _, accepted = play([Plan(PLANNED), *history])
    holder: ChunkLeased | None = None
    for _, event in accepted:
        match event:
            case ChunkLeased():
                assert holder is None, "a lease is released before the next one"
                holder = event
            case ChunkProgressed() | ChunkCompleted():
                assert holder is not None
                assert (event.epoch, event.worker_id) == (holder.epoch, holder.worker_id)
                if isinstance(event, ChunkCompleted):
                    holder = None
            case ChunkReleased():
                assert holder is not None
                assert event.epoch == holder.epoch
                holder = None
            case ChunkClosed():
                holder = None


@given(histories)
def test_totals_are_the_sums_over_what_was_handed_in(history: list[Command]) -> None:
    state, accepted = play([Plan(PLANNED), *history])
    assert state is not None
    handed_in = [command for command, _ in accepted if isinstance(command, Record | Complete)]
    parts = [command.segment for command in handed_in if command.segment is not None]
    assert list(state.segments) == parts
    assert state.completed == sum(part.completed for part in parts)
    assert state.failed == sum(part.failed for part in parts)
    assert state.usage == sum((command.usage for command in handed_in), Usage())


@given(histories, histories)
def test_the_end_is_the_end(before: list[Command], after: list[Command]) -> None:
    state, _ = play([Plan(PLANNED), *before])
    assert state is not None
    if not state.terminal:
        state = evolve(state, through_the_log(decide(state, Close("expired")), 99))
    for command in after:
        try:
            decide(state, command)
        except Rejected:
            continue
        raise AssertionError(f"{command} was accepted by a {state.status} chunk")


@given(histories)
def test_replaying_the_events_gives_the_same_state(history: list[Command]) -> None:
    state, accepted = play(history)
    replayed: Chunk | None = None
    for seq, (_, event) in enumerate(accepted, start=1):
        replayed = evolve(replayed, through_the_log(event, seq))
    assert replayed == state


@given(histories)
def test_nothing_is_possible_without_a_plan(history: list[Command]) -> None:
    _, accepted = play(history)
    if accepted:
        assert accepted[0][1] == PLANNED
        assert sum(isinstance(event, ChunkPlanned) for _, event in accepted) == 1


def test_a_foreign_event_does_not_fit() -> None:
    class Foreign(Event, frozen=True, kw_only=True):
        TYPE = "foreign.event"
        AGGREGATE = ()

    state = Chunk(planned=PLANNED)
    for start in (None, state):
        try:
            evolve(start, Recorded(1, EventId("e"), START, "test", Foreign()))
        except Rejected:
            continue
        raise AssertionError("accepted")
    assert msgspec.structs.asdict(state)["status"] is ChunkStatus.READY
