"""Online usage is recorded once, whatever the log does meanwhile."""

from __future__ import annotations

import pytest

from batch_gateway.api.authentication import Caller
from batch_gateway.api.meter import Meter
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import Event, Recorded, Usage
from vllm_batch.events.usage import UsageRecorded
from vllm_batch.ids import KeyId, ProjectId

CALLER = Caller(ProjectId("p"), KeyId("key_1"))
OTHER = Caller(ProjectId("q"), KeyId("key_2"))


class Flaky(MemoryEventStore):
    """A log that does not answer at first."""

    away = True

    async def append(self, event: Event, **options: object) -> Recorded:  # type: ignore[override]
        if self.away:
            raise EventStoreUnavailable("away")
        return await super().append(event, **options)  # type: ignore[arg-type]


async def recorded(store: MemoryEventStore) -> list[UsageRecorded]:
    found = [r.event async for batch in store.read("usage.>") for r in batch]
    return [event for event in found if isinstance(event, UsageRecorded)]


def use(meter: Meter, caller: Caller = CALLER, *, failed: bool = False) -> None:
    meter.count(caller, "m", failed=failed, usage=Usage(10, 0, 5, 0), seconds=0.5)


async def test_requests_of_one_key_and_model_make_one_report() -> None:
    store = MemoryEventStore()
    meter = Meter(store, 60)
    use(meter)
    use(meter)
    use(meter, failed=True)
    use(meter, OTHER)
    await meter.flush()
    await meter.flush()
    first, second = await recorded(store)
    assert (first.project, first.requests, first.failed, first.seconds) == ("p", 2, 1, 1.5)
    assert first.usage == Usage(30, 0, 15, 0)
    assert (second.project, second.number) == ("q", 2)


async def test_what_could_not_be_recorded_is_not_lost_and_not_counted_twice() -> None:
    store = Flaky()
    meter = Meter(store, 60)
    use(meter)
    await meter.flush()
    use(meter)
    store.away = False
    await meter.flush()
    [report] = await recorded(store)
    assert (report.requests, report.usage) == (2, Usage(20, 0, 10, 0))


@pytest.mark.parametrize("uses", [0, 3])
async def test_the_end_of_a_process_records_what_is_left(uses: int) -> None:
    store = MemoryEventStore()
    meter = Meter(store, 60)
    async with meter.recording():
        for _ in range(uses):
            use(meter)
    assert [event.requests for event in await recorded(store)] == ([uses] if uses else [])
