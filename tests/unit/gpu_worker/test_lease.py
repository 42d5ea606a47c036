"""The lease: who lost it cannot write, and a lost acknowledgement is not a lost lease."""

from __future__ import annotations

import pytest
from tests.unit.gpu_worker.bench import ME, planned

from batch_gpu_worker.lease import Lease
from vllm_batch.aggregates import chunk as rules
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.errors import EventStoreUnavailable, LeaseLost, Rejected
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.event_store.protocol import append_decided, fold
from vllm_batch.events import Event, Recorded, Segment, Usage
from vllm_batch.ids import EventId, JobId, WorkerId
from vllm_batch.messaging import subjects

JOB = JobId("batch_j")
SUBJECT = subjects.chunk(JOB, 0)
OTHER = WorkerId("worker_2")


class DeafStore(MemoryEventStore):
    """Takes an append and does not say so, as often as it is told."""

    deaf = 0

    async def append(
        self, event: Event, *, expected: int, event_id: EventId | None = None, **more: object
    ) -> Recorded:
        recorded = await super().append(event, expected=expected, event_id=event_id)
        if self.deaf:
            self.deaf -= 1
            raise EventStoreUnavailable("the answer got lost")
        return recorded


@pytest.fixture
async def store() -> DeafStore:
    store = DeafStore()
    await store.append(planned(), expected=0)
    return store


def segment(number: int, completed: int = 1) -> Segment:
    return Segment(blob=f"segments/{number}", bytes=1, completed=completed, failed=0)


async def take(store: MemoryEventStore) -> Lease:
    return await Lease.take(store, JOB, 0, worker_id=ME)


async def state(store: MemoryEventStore) -> Chunk:
    chunk, _ = await fold(store, SUBJECT, rules.evolve)
    assert chunk is not None
    return chunk


async def release_by_leader(store: MemoryEventStore, epoch: int) -> None:
    await append_decided(
        store, SUBJECT, rules.evolve,
        lambda chunk: rules.decide(chunk, rules.Release(epoch, "worker_lost")),
    )  # fmt: skip


async def test_a_chunk_is_worked_on_from_lease_to_end(store: DeafStore) -> None:
    lease = await take(store)
    await lease.record(segment(1), Usage(1))
    await lease.complete(segment(2, completed=2), Usage(2))
    chunk = await state(store)
    assert chunk.status is ChunkStatus.COMPLETED
    assert (chunk.completed, chunk.usage, chunk.epoch) == (3, Usage(3), 1)


async def test_two_workers_cannot_have_it(store: DeafStore) -> None:
    await take(store)
    with pytest.raises(LeaseLost):
        await Lease.take(store, JOB, 0, worker_id=OTHER)


async def test_a_chunk_nobody_planned_cannot_be_leased(store: DeafStore) -> None:
    with pytest.raises(Rejected):
        await Lease.take(store, JOB, 9, worker_id=ME)


async def test_a_zombie_cannot_record(store: DeafStore) -> None:
    zombie = await take(store)
    await release_by_leader(store, zombie.epoch)
    heir = await Lease.take(store, JOB, 0, worker_id=OTHER)
    before = await store.last_sequence()
    with pytest.raises(LeaseLost):
        await zombie.record(segment(1), Usage())
    with pytest.raises(LeaseLost):
        await zombie.complete(segment(1, completed=3), Usage())
    with pytest.raises(LeaseLost):
        await zombie.release("drained")
    assert await store.last_sequence() == before
    await heir.complete(segment(2, completed=3), Usage())


async def test_a_lease_whose_acknowledgement_was_lost_is_found(store: DeafStore) -> None:
    store.deaf = 1
    with pytest.raises(EventStoreUnavailable):
        await take(store)
    lease = await take(store)
    assert lease.epoch == 1
    await lease.record(segment(1), Usage())


@pytest.mark.parametrize("deed", ["record", "complete", "complete_empty", "release"])
async def test_an_append_whose_acknowledgement_was_lost_is_not_repeated(
    store: DeafStore, deed: str
) -> None:
    lease = await take(store)
    if deed == "complete_empty":
        await lease.record(segment(0, completed=3), Usage())

    async def do() -> None:
        match deed:
            case "record":
                await lease.record(segment(1), Usage())
            case "complete":
                await lease.complete(segment(1, completed=3), Usage())
            case "complete_empty":
                await lease.complete(None, Usage())
            case _:
                await lease.release("drained")

    store.deaf = 1
    with pytest.raises(EventStoreUnavailable):
        await do()
    before = await store.last_sequence()
    await do()
    assert await store.last_sequence() == before


async def test_a_release_the_leader_was_faster_with_counts_as_done(store: DeafStore) -> None:
    lease = await take(store)
    await release_by_leader(store, lease.epoch)
    await lease.release("drained")
    assert (await state(store)).status is ChunkStatus.READY
