"""The event log while its server is killed, frozen and restarted under load."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from nats.js.errors import APIError
from tests.conftest import NatsServer

from vllm_batch.errors import Conflict, EventStoreUnavailable
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import ChunkPlanned, Recorded
from vllm_batch.ids import JobId, new_event_id
from vllm_batch.settings import Settings

EVENTS = 600
KILLS = 3


def planned(number: int) -> ChunkPlanned:
    return ChunkPlanned(
        job_id=JobId("j"), chunk=number, blob="files/f", offset=0, length=10, first_line=1, count=1,
        endpoint="/v1/chat/completions", model="m",
    )  # fmt: skip


async def followed(store: JetStreamEventStore, wanted: int, seen: list[Recorded]) -> None:
    async for batch in store.follow(["chunk.>"]):
        seen.extend(batch)
        if len(seen) >= wanted:
            return


async def test_killing_the_server_loses_no_acknowledged_event_and_repeats_none(
    event_store: JetStreamEventStore, nats_server: NatsServer
) -> None:
    seen: list[Recorded] = []
    follower = asyncio.create_task(followed(event_store, EVENTS, seen))
    done = 0

    async def append(number: int) -> Recorded:
        nonlocal done
        recorded = await event_store.append(planned(number), expected=0)
        done += 1
        return recorded

    async def kill_at(threshold: int) -> None:
        while done < threshold:
            await asyncio.sleep(0.001)
        nats_server.kill()
        await asyncio.to_thread(nats_server.start)

    async def kills() -> None:
        for kill in range(1, KILLS + 1):
            await kill_at(kill * EVENTS // (KILLS + 1))

    async with asyncio.timeout(90):
        recorded, _ = await asyncio.gather(
            asyncio.gather(*(append(number) for number in range(EVENTS))), kills()
        )
        await follower
    in_log = [event async for batch in event_store.read("chunk.>") for event in batch]
    assert {event.id for event in in_log} == {event.id for event in recorded}
    assert len(in_log) == EVENTS
    assert {event.id: event.seq for event in recorded} == {event.id: event.seq for event in in_log}
    assert [event.seq for event in seen] == [event.seq for event in in_log]


async def test_a_server_that_dies_before_it_can_say_who_was_first(
    event_store: JetStreamEventStore, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry after a lost acknowledgement is refused; the look at what is there finds nobody."""
    look, looks = event_store._last_of, 0

    async def look_at_the_dead(subject: str, refusal: APIError) -> Recorded | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            nats_server.kill()
            asyncio.get_running_loop().call_later(0.5, nats_server.start)
        return await look(subject, refusal)

    monkeypatch.setattr(event_store, "_last_of", look_at_the_dead)
    event_id = new_event_id()
    first = await event_store.append(planned(0), expected=0, event_id=event_id)
    again = await event_store.append(planned(0), expected=0, event_id=event_id)
    assert again.seq == first.seq
    assert looks > 1
    with pytest.raises(Conflict):
        await event_store.append(planned(0), expected=0)


async def test_a_frozen_server_is_waited_for_and_then_reported(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, nats_url=nats_server.url, append_timeout_seconds=1.0)
    async with jetstream.connect(settings, source="test") as store:
        first = await store.append(planned(0), expected=0)
        nats_server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(EventStoreUnavailable):
                await store.append(planned(1), expected=0)
        finally:
            nats_server.signal(signal.SIGCONT)
        with pytest.raises(Conflict):
            await store.append(planned(0), expected=first.seq + 100)


async def test_without_a_server_connecting_says_where_it_tried(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, nats_url="nats://127.0.0.1:1")
    with pytest.raises(EventStoreUnavailable, match=r"127\.0\.0\.1:1"):
        async with jetstream.connect(settings, source="test"):
            pass
