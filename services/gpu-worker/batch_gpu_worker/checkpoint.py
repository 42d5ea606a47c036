"""Hands results in: one segment blob per chunk and flush, then the event that points to it.

One flush at a time for the whole worker, every flush_seconds, or sooner when flush_results results
wait or a chunk is done. What arrives during a flush goes with the next one, so a slow disk or log
makes segments larger, not more. Nothing that was computed is dropped while the lease holds: the log
or the blob store being away or full only means trying again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry

from batch_gpu_worker.holdings import HeldChunk, Holdings
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobError, EventStoreError, Rejected
from vllm_batch.events import Effort, Segment, Usage
from vllm_batch.metrics.worker import WorkerMetrics
from vllm_batch.segments import Result, encode_segment, segment_key
from vllm_batch.settings import Settings

log = structlog.get_logger(__name__)

RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 10.0
_NOTHING_USED, _NO_EFFORT = Usage(), Effort()


class Checkpointer:
    """Owns the results that are not handed in yet; ``undurable`` counts them."""

    def __init__(
        self,
        blobs: BlobStore,
        holdings: Holdings,
        settings: Settings,
        *,
        on_durable: Callable[[], None],
        on_lost: Callable[[HeldChunk], None],
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self.undurable = 0
        self._blobs = blobs
        self._holdings = holdings
        self._flush_seconds = settings.flush_seconds
        self._flush_results = settings.flush_results
        self._on_durable = on_durable
        self._on_lost = on_lost
        self._metrics = metrics or WorkerMetrics(CollectorRegistry())
        self._dirty: dict[HeldChunk, None] = {}
        self._unflushed = 0
        self._any = asyncio.Event()
        self._urgent = asyncio.Event()
        self._flushing = asyncio.Lock()

    def add(self, chunk: HeldChunk, result: Result, usage: Usage) -> None:
        """Take a result over."""
        chunk.add(result, usage)
        self.undurable += 1
        self._unflushed += 1
        if len(chunk.results) == 1:
            self._dirty[chunk] = None
            self._any.set()
        if chunk.unanswered == 0:
            chunk.trace.answered()
            self._urgent.set()
        elif self._unflushed >= self._flush_results:
            self._urgent.set()

    def hand_in(self, chunk: HeldChunk) -> None:
        """Complete or release a chunk soon, with or without results that wait."""
        self._dirty[chunk] = None
        self._any.set()
        self._urgent.set()

    async def run(self) -> None:
        """Flush for ever."""
        while True:
            await self._any.wait()
            try:
                async with asyncio.timeout(self._flush_seconds):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            await self.flush()

    async def flush(self) -> None:
        """Hand in everything that waits now; returns when it is durable or the lease is lost."""
        async with self._flushing:
            dirty, self._dirty = self._dirty, {}
            self._unflushed = 0
            self._any.clear()
            self._urgent.clear()
            with self._metrics.flush_duration.time():
                if len(dirty) == 1:
                    await self._flush_chunk(next(iter(dirty)))
                else:
                    await asyncio.gather(*(self._flush_chunk(chunk) for chunk in dirty))

    async def check_leases(self) -> None:
        """Look for other leases that are lost, before more work is put into them."""
        for chunk in self._holdings:
            if not await self.check_lease(chunk):
                return

    async def check_lease(self, chunk: HeldChunk) -> bool:
        """Drop a chunk whose lease is lost; False if the log does not say."""
        if chunk.over:
            return True
        try:
            await chunk.lease.check()
        except Rejected as error:
            self._lose(chunk, error)
        except EventStoreError as error:
            log.warning("leases cannot be checked", error=str(error))
            return False
        return True

    def _lose(self, chunk: HeldChunk, why: Rejected) -> None:
        if chunk.gone:
            return
        log.warning(
            "lease lost", job=chunk.job_id, chunk=chunk.number, epoch=chunk.lease.epoch,
            why=str(why),
        )  # fmt: skip
        chunk.gone = True
        chunk.trace.end("lease_lost")
        self._metrics.leases_lost.inc()
        self.undurable -= len(chunk.results)
        chunk.results = []
        self._holdings.remove(chunk)
        self._on_lost(chunk)

    async def _flush_chunk(self, chunk: HeldChunk) -> None:
        results, usage, effort = chunk.results, chunk.usage, chunk.effort
        chunk.results, chunk.usage, chunk.effort = [], _NOTHING_USED, _NO_EFFORT
        if chunk.gone:
            self.undurable -= len(results)
            return
        due = chunk.due
        try:
            complete = chunk.unanswered == 0
            with chunk.trace.current():
                await self._hand_in(chunk, results, usage, effort, complete=complete)
        except Rejected as error:
            self.undurable -= len(results)
            self._lose(chunk, error)
            return
        except BaseException:
            # Unforeseen: the results go with the next flush.
            chunk.results, chunk.usage = results + chunk.results, usage + chunk.usage
            chunk.effort += effort
            self.hand_in(chunk)
            raise
        self.undurable -= len(results)
        self._metrics.count(chunk.model, results, usage)
        if due:
            chunk.gone = True
            chunk.trace.end(chunk.ending or "completed")
            self._holdings.remove(chunk)
        self._on_durable()

    async def _hand_in(
        self,
        chunk: HeldChunk,
        results: list[Result],
        usage: Usage,
        effort: Effort,
        *,
        complete: bool,
    ) -> None:
        """Store and record, as often as it takes. Raises Rejected when the lease is lost."""
        lease, ending = chunk.lease, chunk.ending
        segment: Segment | None = None
        attempt = 0
        while True:
            try:
                if results and segment is None:
                    segment = await self._store(chunk, results)
                if complete:
                    return await lease.complete(segment, usage, effort)
                if segment is not None:
                    await lease.record(segment, usage, effort)
                if ending is not None:
                    await lease.release(ending, effort if segment is None else _NO_EFFORT)
                return None
            except (EventStoreError, BlobError) as error:
                pause = min(RETRY_SECONDS * 2**attempt, RETRY_SECONDS_MAX)
                attempt += 1
                self._metrics.handing_in_failures.inc()
                log.error(
                    "results cannot be handed in yet", job=chunk.job_id, chunk=chunk.number,
                    results=len(results), code=error.code, error=str(error), retry_seconds=pause,
                )  # fmt: skip
                await asyncio.sleep(pause)

    async def _store(self, chunk: HeldChunk, results: list[Result]) -> Segment:
        key = segment_key(chunk.job_id, chunk.number, chunk.lease.epoch, chunk.segments_written + 1)
        data = encode_segment(results)
        await self._blobs.put(key, data)
        chunk.segments_written += 1
        self._metrics.segment_bytes.inc(len(data))
        failed = sum(result.failed for result in results)
        return Segment(blob=key, bytes=len(data), completed=len(results) - failed, failed=failed)
