"""Where a reader begins: what ``beginning``, ``now``, a sequence or a time mean in a log."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime

from vllm_batch.errors import InvalidInput
from vllm_batch.event_store.protocol import EventStore
from vllm_batch.events import Recorded

SEQUENCE_MAX = 2**53


async def start_of(store: EventStore, start: str, *, param: str) -> int:
    """Return the sequence after which to begin.

    Raises:
        InvalidInput: ``start`` is neither a word, nor a sequence, nor a time; names ``param``.
    """
    if start == "beginning":
        return 0
    if start == "now":
        return await store.last_sequence()
    if start.isascii() and start.isdecimal() and int(start) <= SEQUENCE_MAX:
        return max(0, int(start) - 1)
    try:
        time = datetime.fromisoformat(start)
    except ValueError:
        raise InvalidInput(
            f"{param} is {start[:40]!r}: give `beginning`, `now`, a sequence number, or a time "
            "such as 2026-01-31T12:00:00Z",
            param=param,
        ) from None
    return await sequence_before(store, time.astimezone(UTC))


async def sequence_before(store: EventStore, time: datetime) -> int:
    """Return the last sequence recorded before ``time``, found by halving."""
    low, high = 0, await store.last_sequence()
    while low < high:
        middle = (low + high + 1) // 2
        found = await first_after(store, middle - 1)
        if found is not None and found.time < time:
            low = middle
        else:
            high = middle - 1
    return low


async def first_after(store: EventStore, seq: int) -> Recorded | None:
    """Return the first event after ``seq``, if there is one."""
    async with aclosing(store.read(">", after=seq)) as batches:  # type: ignore[type-var]
        async for batch in batches:
            return batch[0]
    return None
