"""What online requests used, added up in memory and recorded now and then.

Appends ``usage.recorded`` per key and model every usage_flush_seconds and at the end of the
process. A gateway that is killed forgets what it has counted since the last time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from batch_gateway.api.authentication import Caller
from vllm_batch import ids, tasks
from vllm_batch.errors import EventStoreError
from vllm_batch.event_store import EventStore
from vllm_batch.events import Usage
from vllm_batch.events.usage import UsageRecorded
from vllm_batch.ids import KeyId, ProjectId

log = structlog.get_logger(__name__)

_Owner = tuple[ProjectId, KeyId, str]


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    failed: int = 0
    usage: Usage = Usage()  # noqa: RUF009 - it never changes
    seconds: float = 0.0


class Meter:
    """Counts; see `recording`."""

    def __init__(self, store: EventStore, flush_seconds: float) -> None:
        self._store = store
        self._flush_seconds = flush_seconds
        self._meter_id = ids.new("meter_")
        self._number = 0
        self._sums: dict[_Owner, _Sum] = {}

    def count(
        self, caller: Caller, model: str, *, failed: bool, usage: Usage, seconds: float
    ) -> None:
        """Count one request that is over; ``seconds``: how long it took."""
        found = self._sums.setdefault((caller.project, caller.key_id, model), _Sum())
        found.requests += not failed
        found.failed += failed
        found.usage += usage
        found.seconds += seconds

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Record while the context lasts, and what is left at its end."""
        running = asyncio.create_task(self._run(), name="record online usage")
        try:
            yield
        finally:
            await tasks.end(running)
            await self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._flush_seconds)
            await self.flush()

    async def flush(self) -> None:
        """Record what was counted; what cannot be recorded now stays for the next time.

        An append that got no answer within append_timeout_seconds but happened counts twice.
        """
        for owner, found in list(self._sums.items()):
            project, key_id, model = owner
            self._number += 1
            event = UsageRecorded(
                meter_id=self._meter_id, number=self._number, project=project, key_id=key_id,
                model=model, requests=found.requests, failed=found.failed, usage=found.usage,
                seconds=round(found.seconds, 3),
            )  # fmt: skip
            del self._sums[owner]  # what comes while we wait begins a new sum
            try:
                await self._store.append(event, expected=0)
            except EventStoreError as error:
                log.warning("usage not recorded yet", error=str(error), model=model)
                self._put_back(owner, found)
                return

    def _put_back(self, owner: _Owner, found: _Sum) -> None:
        since = self._sums.get(owner, _Sum())
        found.requests += since.requests
        found.failed += since.failed
        found.usage += since.usage
        found.seconds += since.seconds
        self._sums[owner] = found
