"""Takes hints, leases their chunks and loads them, ahead of need and not further.

What is held ahead is what the engine uses up in LOOKAHEAD_SECONDS: enough that it never waits for a
lease, little enough that a small job that comes later is not behind much, and that other workers
get their share at a job's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import nats.errors
import structlog
from nats.js import JetStreamContext
from nats.js.errors import Error as JetStreamError

from batch_gpu_worker.admission import Admission
from batch_gpu_worker.holdings import HeldChunk, Holdings
from batch_gpu_worker.lease import Lease, ReleaseReason
from vllm_batch import batch_file, ids, tasks, tracing
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobError, EventStoreError, Rejected
from vllm_batch.event_store.protocol import EventStore
from vllm_batch.events import Segment
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.messaging.consumer import Hint, HintQueue, Outcome
from vllm_batch.segments import decode_segment
from vllm_batch.settings import Settings
from vllm_batch.tracing import SpanKind

log = structlog.get_logger(__name__)

LOOKAHEAD_SECONDS = 0.2
WAIT_SECONDS = 5.0
LEASES_AT_ONCE_MAX = 4
LOAD_ATTEMPTS_MAX = 5
PAUSE_SECONDS = 0.5
PAUSE_SECONDS_MAX = 5.0
RATE_SECONDS = 0.05


class Unreadable(Exception):
    """A chunk's requests are not what was planned."""


class Intake:
    """Brings chunks in. ``ending_of`` says whether a job is known to need no more work;
    ``check_lease`` drops a chunk whose lease is lost."""

    def __init__(
        self,
        store: EventStore,
        js: JetStreamContext,
        blobs: BlobStore,
        holdings: Holdings,
        admission: Admission,
        *,
        settings: Settings,
        worker_id: WorkerId,
        ending_of: Callable[[JobId], ReleaseReason | None],
        check_lease: Callable[[HeldChunk], Awaitable[bool]],
    ) -> None:
        self._store = store
        self._js = js
        self._blobs = blobs
        self._holdings = holdings
        self._worker_id = worker_id
        self._ending_of = ending_of
        self._admission = admission
        self._leases = asyncio.Semaphore(LEASES_AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._check_lease = check_lease
        self._closed = False
        self._models: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._bringing: set[tuple[JobId, int]] = set()
        self._coming = 0
        self._size = float(settings.chunk_requests_max)
        self._rate = 0.0
        self._measured = (0.0, 0)

    async def run(self) -> None:
        """Take hints for the models that `serve` names, until cancelled."""
        self._admission.hungry.set()
        takers: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                self._changed.clear()
                await tasks.end(*(takers.pop(model) for model in takers.keys() - self._models))
                for model in self._models - takers.keys():
                    takers[model] = asyncio.create_task(self._run_model(ids.model_key(model)))
                changed = asyncio.create_task(self._changed.wait())
                try:
                    done, _ = await asyncio.wait(
                        {changed, *takers.values()}, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    await tasks.end(changed)
                for task in done:
                    task.result()  # a taker never ends by itself: raise what went wrong
        finally:
            await tasks.end(*takers.values())

    def serve(self, models: Iterable[str]) -> None:
        """Take hints for these models from now on, and for no others."""
        self._models = frozenset(models)
        self._closed = False
        self._changed.set()

    def withdraw(self, model: str) -> None:
        """Take no more hints for this one of the models."""
        self._models -= {model}
        self._changed.set()

    async def close(self) -> None:
        """Give back what is being leased or loaded; wait until that is done."""
        self._closed = True
        for _ in range(2):  # who was leasing just now has begun another task, which loads
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run_model(self, key: ids.ModelKey) -> None:
        queue = HintQueue(self._js, key)
        try:
            while True:
                await self._admission.hungry.wait()
                if not self._wanted():
                    self._admission.hungry.clear()
                    continue
                await self._leases.acquire()
                await self._take(queue)
        finally:
            await queue.close()

    def _wanted(self) -> bool:
        """Whether what waits, and what is on its way, is too little."""
        admission = self._admission
        now = asyncio.get_running_loop().time()
        since, answered = self._measured
        if now - since >= RATE_SECONDS:
            self._measured = (now, admission.answered)
            self._rate = (self._rate + (admission.answered - answered) / (now - since)) / 2
        ahead = max(1, (admission.free + admission.in_flight) // 16)
        ahead = max(ahead, int(self._rate * LOOKAHEAD_SECONDS))
        admission.hungry_below = ahead
        coming = int(self._coming * self._size)
        return self._holdings.waiting + coming < admission.free + ahead

    async def _take(self, queue: HintQueue) -> None:
        """Wait for one hint; return as soon as it is here, while the rest goes on."""
        here = asyncio.Event()

        async def handle(hint: Hint) -> Outcome:
            self._coming += 1
            here.set()
            try:
                return await self._handle(hint)
            finally:
                self._coming -= 1

        async def lane() -> None:
            try:
                await queue.take(handle, wait_seconds=WAIT_SECONDS)
            except (nats.errors.Error, JetStreamError, TimeoutError, ConnectionError) as error:
                log.warning("no hints to be had", error=repr(error))
                if not here.is_set():
                    await asyncio.sleep(PAUSE_SECONDS)
            finally:
                self._leases.release()
                here.set()
                self._admission.hungry.set()

        task = asyncio.create_task(lane())
        try:
            await here.wait()
        except asyncio.CancelledError:
            if not here.is_set():
                task.cancel()
            raise
        finally:
            self._keep(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _handle(self, hint: Hint) -> Outcome:
        key = (hint.job_id, hint.chunk)
        if key in self._bringing:
            return Outcome.DONE  # a hint may come twice; the lease is this worker's already
        if (held := self._holdings.find(key)) is not None:
            # Or else the lease was taken away, and a request that hangs kept us from noticing.
            await self._check_lease(held)
            if key in self._holdings or key in self._bringing:
                return Outcome.DONE
        self._bringing.add(key)
        lease = await self._lease(hint)
        if lease is None:
            self._bringing.discard(key)
            return Outcome.RETRY_LATER if self._closed else Outcome.DONE
        self._coming += 1
        self._keep(asyncio.create_task(self._bring_in(lease)))
        return Outcome.DONE

    async def _lease(self, hint: Hint) -> Lease | None:
        """Return the lease, None if it is not to be had. Tries until it is known which."""
        pause = PAUSE_SECONDS
        while not self._closed:
            try:
                with tracing.span("lease", SpanKind.CONSUMER) as span:
                    span.set_attribute("vllm_batch.batch.id", hint.job_id)
                    return await Lease.take(
                        self._store, hint.job_id, hint.chunk, worker_id=self._worker_id
                    )
            except Rejected as error:
                log.debug("no lease", job=hint.job_id, chunk=hint.chunk, why=str(error))
                return None
            except EventStoreError as error:
                log.warning("not leased yet", job=hint.job_id, chunk=hint.chunk, error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)
        return None

    async def _bring_in(self, lease: Lease) -> None:
        planned = lease.chunk.planned
        try:
            self._begin(await self._load(lease))
        except Unreadable as error:
            log.error(
                "chunk cannot be read", job=planned.job_id, chunk=planned.chunk, error=str(error)
            )
            await asyncio.sleep(PAUSE_SECONDS_MAX)  # the next worker is offered it at once
            await self._give_back(lease, "error")
        finally:
            self._coming -= 1
            self._bringing.discard((planned.job_id, planned.chunk))

    def _begin(self, chunk: HeldChunk) -> None:
        admission = self._admission
        self._size = 0.7 * self._size + 0.3 * chunk.unanswered
        self._holdings.add(chunk)
        ending = "drained" if self._closed else self._ending_of(chunk.job_id)
        if ending is not None:
            admission.end(chunk, ending)
        elif chunk.unanswered == 0:
            admission.complete(chunk)
        else:
            admission.pump()

    async def _load(self, lease: Lease) -> HeldChunk:
        """Read the chunk's requests and which of them have a result. Raises Unreadable."""
        planned = lease.chunk.planned
        for attempt in range(LOAD_ATTEMPTS_MAX):
            try:
                data = await self._blobs.get(
                    planned.blob, start=planned.offset, length=planned.length
                )
                done = await self._recorded(lease.chunk.segments)
                break
            except BlobError as error:
                if attempt == LOAD_ATTEMPTS_MAX - 1:
                    raise Unreadable(str(error)) from error
                await asyncio.sleep(min(PAUSE_SECONDS * 2**attempt, PAUSE_SECONDS_MAX))
        if planned.offset == 0:
            data = data.removeprefix(batch_file.BOM)
        lines = list(batch_file.request_lines(data))
        if len(lines) != planned.count:
            raise Unreadable(f"{len(lines)} requests where {planned.count} were planned")
        return HeldChunk(lease, lines, done=done)

    async def _recorded(self, segments: tuple[Segment, ...]) -> set[int]:
        indexes: set[int] = set()
        for segment in segments:
            data = await self._blobs.get(segment.blob)
            indexes.update(result.index for result in decode_segment(data))
        return indexes

    async def _give_back(self, lease: Lease, reason: ReleaseReason) -> None:
        while True:
            try:
                return await lease.release(reason)
            except Rejected:
                return None  # it is no longer ours
            except EventStoreError as error:
                log.warning("not released yet", error=str(error))
            await asyncio.sleep(PAUSE_SECONDS)
