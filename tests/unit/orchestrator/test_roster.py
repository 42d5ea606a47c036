"""Who is alive: silence counts only while we could have heard."""

from __future__ import annotations

import pytest
from tests.unit.orchestrator.bench import OrchestratorBench, request, worker_ready

from batch_gateway.orchestrator.board import Board
from batch_gateway.orchestrator.roster import Roster
from vllm_batch.events import Event, WorkerLost, WorkerReady, WorkerStopped
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects

W = WorkerId("w")


class Room:
    """A board that follows by hand, and its roster."""

    def __init__(self, bench: OrchestratorBench, board: Board) -> None:
        self.bench = bench
        self.board = board
        self.roster = Roster(board, lease_seconds=10, monotonic=bench.clock.monotonic)
        self.roster.sync()

    async def append(self, event: Event) -> None:
        subject = subjects.of_aggregate(event)
        last = [
            recorded.seq async for batch in self.bench.store.read(subject) for recorded in batch
        ]
        self.board.apply(await self.bench.store.append(event, expected=last[-1]))
        self.roster.sync()

    def alive(self) -> bool:
        view = self.board.workers.get(W)
        return view is not None and self.roster.is_alive(view)

    def advance(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)


@pytest.fixture
async def room(bench: OrchestratorBench) -> Room:
    await worker_ready(bench.store, W)
    return Room(bench, await bench.board())


async def test_a_worker_is_alive_for_a_lease_after_each_heartbeat(room: Room) -> None:
    for _ in range(3):
        room.advance(9)
        assert room.alive()
        room.roster.hear(W)
    room.advance(10.1)
    assert not room.alive()


async def test_after_a_pause_of_ours_everybody_gets_a_full_lease(room: Room) -> None:
    room.advance(100)
    assert not room.alive()
    room.roster.start_anew()
    assert room.alive()
    room.advance(10.1)
    assert not room.alive()


async def test_a_stopped_worker_is_gone_whatever_is_still_heard(room: Room) -> None:
    await room.append(WorkerStopped(worker_id=W, reason="drained"))
    room.roster.hear(W)
    assert not room.alive()
    assert W not in room.board.workers


async def test_a_lost_worker_that_is_heard_again_is_alive_again(room: Room) -> None:
    await room.append(WorkerLost(worker_id=W, reason="silent"))
    assert not room.alive()
    room.roster.hear(W)
    assert room.alive()
    assert room.roster.alive_by_model() == {"m": 1}
    room.roster.sync()
    assert room.alive()


async def test_a_lost_worker_that_says_it_is_ready_is_alive_again(room: Room) -> None:
    await room.append(WorkerLost(worker_id=W, reason="silent"))
    await room.append(WorkerReady(worker_id=W, models=["m"], in_flight_max=8))
    assert room.alive()


async def test_a_successor_of_the_same_name_replaces_at_once(
    room: Room, bench: OrchestratorBench
) -> None:
    await worker_ready(bench.store, "w2", name=W)
    later = Room(bench, await bench.board())
    assert later.board.workers[W].gone
    assert not later.alive()
    assert later.roster.alive_by_model() == {"m": 1}


async def test_an_owner_of_a_lease_that_never_announced_itself_is_watched_too(
    bench: OrchestratorBench,
) -> None:
    job_id = await bench.planned("a", [request("1")], per_chunk=1)
    await bench.lease(job_id, 0, W)
    room = Room(bench, await bench.board())
    assert room.alive()
    room.advance(10.1)
    assert not room.alive()


async def test_it_knows_when_a_worker_had_online_requests_last(room: Room) -> None:
    assert room.roster.online_seconds_ago(W) == float("inf")
    room.roster.hear(W, online_in_flight=2)
    room.advance(3)
    room.roster.hear(W)
    assert room.roster.online_seconds_ago(W) == 3
