"""What open uploads declared, folded from the log."""

from __future__ import annotations

from datetime import timedelta

from tests.facts import START, append

from batch_gateway.api.open_uploads import OpenUploads
from vllm_batch.clock import ManualClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events.upload import UploadCancelled, UploadCreated
from vllm_batch.ids import ProjectId, UploadId

MINE, THEIRS = ProjectId("mine"), ProjectId("theirs")


def created(upload: str, size: int, project: ProjectId, seconds: int) -> UploadCreated:
    ends = START + timedelta(seconds=seconds)
    return UploadCreated(
        upload_id=UploadId(upload), project=project, filename="a", purpose="batch",
        mime_type="text/jsonl", bytes=size, expires_at=int(ends.timestamp()),
    )  # fmt: skip


async def test_it_counts_until_it_ends_or_expires_and_is_forgotten_then() -> None:
    clock = ManualClock(START)
    store, uploads = MemoryEventStore(clock=clock), OpenUploads(clock)

    async def fold() -> None:
        async for batch in store.read("upload.>", after=uploads.position):
            for recorded in batch:
                uploads.apply(recorded)

    for event in (created("a", 1, MINE, 60), created("b", 2, MINE, 60), created("c", 4, THEIRS, 9)):
        await append(store, event)
    await fold()
    assert uploads.declared_bytes(MINE) == 3
    assert uploads.declared_bytes(MINE, besides=UploadId("a")) == 2
    assert uploads.declared_bytes(THEIRS) == 4
    await append(store, UploadCancelled(upload_id=UploadId("a")))
    clock.advance(10)
    await append(store, created("d", 8, MINE, 60))
    await fold()
    assert uploads.declared_bytes(MINE) == 10
    assert set(uploads._open) == {"b", "d"}, "nobody has to ask for it to be forgotten"
