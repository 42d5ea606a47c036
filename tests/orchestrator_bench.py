"""A leading orchestrator over a real event log, and a worker that can be read at a glance."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec
import nats.errors
from nats.js.errors import Error as JetStreamError
from pydantic import SecretStr

from batch_gateway.orchestrator.main import Lead
from tests.unit.orchestrator.bench import (
    OrchestratorBench,
    job_of,
    result_line,
    worker_ready,
)
from vllm_batch import ids
from vllm_batch.aggregates import chunk as rules
from vllm_batch.aggregates.chunk import Chunk
from vllm_batch.aggregates.job import TERMINAL, Job, JobStatus
from vllm_batch.batch_file import parse_request, request_lines
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import Conflict, EventStoreUnavailable, Rejected
from vllm_batch.event_store import EventStore, jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.event_store.protocol import fold
from vllm_batch.events import Event, JobSubmitted, Recorded, Segment, Usage
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.ids import JobId, WorkerId
from vllm_batch.local.programs import environment_of
from vllm_batch.messaging import subjects
from vllm_batch.messaging.consumer import Hint, HintQueue, Outcome
from vllm_batch.segments import Result, decode_segment, encode_segment, segment_key
from vllm_batch.settings import Settings
from vllm_batch.tasks import end

AWAY = (nats.errors.Error, JetStreamError, TimeoutError, ConnectionError)
NO_POSTGRES = SecretStr("postgresql://nobody@127.0.0.1:1/nowhere")


class LogBench(OrchestratorBench):
    """The unit tests' bench over a real log."""

    def __init__(self, store: JetStreamEventStore, settings: Settings) -> None:
        self.settings = settings
        self.store: EventStore = store  # type: ignore[assignment]
        self.home = settings.home
        self.blobs = open_blobs(settings.blob_url)

    async def submit(self, name: str, content: bytes, **changes: object) -> JobSubmitted:
        """Upload and submit; the window closes tomorrow."""
        tomorrow = int(SystemClock().now().timestamp()) + 86_400
        return await super().submit(name, content, **{"expires_at": tomorrow, **changes})

    async def reach(self, job_id: JobId, *statuses: JobStatus, seconds: float = 120) -> Job:
        """Wait until the job is in one of ``statuses``; default: until it has ended."""
        async with asyncio.timeout(seconds):
            while True:
                with suppress(EventStoreUnavailable):
                    job = await job_of(self.store, job_id)
                    if job.status in (statuses or TERMINAL):
                        return job
                await asyncio.sleep(0.01)

    async def events(self, subject: str) -> list[Event]:
        """Return what the log has."""
        return [one.event async for batch in self.store.read(subject) for one in batch]


async def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def leading(settings: Settings) -> AsyncIterator[Lead]:
    """Lead without asking for leadership, on a connection of its own."""
    async with jetstream.connect(settings, source="orchestrator") as store:
        lead = Lead(store, open_blobs(settings.blob_url), settings, SystemClock())
        task = asyncio.create_task(lead.run())
        try:
            yield lead
        finally:
            await end(task)


@asynccontextmanager
async def orchestrator_process(
    settings: Settings, *, stderr: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an orchestrator as a process; whatever is left of it at the end is killed."""
    values = settings.model_dump(exclude_defaults=True, exclude_none=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batch_gateway", "orchestrator",
        env={**os.environ, **environment_of(values)}, stderr=stderr,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()


@dataclass
class Held:
    """A chunk that the worker holds, as of its last append."""

    chunk: Chunk
    seq: int


class TinyWorker:
    """Leases, answers at once, hands in in two segments, completes.

    With ``gate`` it waits for a permit before it works on a chunk it has leased. Lines whose
    custom_id starts with "bad" fail.
    """

    _store: JetStreamEventStore

    def __init__(
        self,
        settings: Settings,
        worker_id: str = "worker_a",
        *,
        name: str = "",
        gate: asyncio.Semaphore | None = None,
    ) -> None:
        self.worker_id = WorkerId(worker_id)
        self.leased: list[tuple[JobId, int]] = []
        self.lost: list[tuple[JobId, int]] = []
        self.held: dict[tuple[JobId, int], Held] = {}
        self.release_reason: str | None = None
        self._name = name or worker_id
        self._settings = settings
        self._blobs = open_blobs(settings.blob_url)
        self._gate = gate
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def working(self, models: Sequence[str] = ("m",)) -> AsyncIterator[TinyWorker]:
        """Announce itself and work; at the end it dies without a word."""
        async with jetstream.connect(self._settings, source=self.worker_id) as self._store:
            await worker_ready(self._store, self.worker_id, name=self._name, models=models)
            tasks = [asyncio.create_task(self._beat())]
            tasks += [asyncio.create_task(self._take(model)) for model in models]
            try:
                yield self
            finally:
                self.freeze()
                await end(*tasks, *self._tasks)

    def freeze(self) -> None:
        """Stop beating, taking and working, from one moment to the next."""
        self.frozen = True
        for task in self._tasks:
            task.cancel()

    frozen = False

    async def _beat(self) -> None:
        client = self._store.connection.client
        while True:
            if not self.frozen:
                beat = Heartbeat(
                    worker_id=self.worker_id, name=self._name, host="h", pid=1,
                    time=SystemClock().now(), state="ready", engine="tiny",
                )  # fmt: skip
                with suppress(*AWAY):
                    await client.publish(
                        subjects.heartbeat(self.worker_id), msgspec.json.encode(beat)
                    )
            await asyncio.sleep(0.1)

    async def _take(self, model: str) -> None:
        queue = HintQueue(self._store.js, ids.model_key(model))
        while True:
            if self.frozen:
                await asyncio.sleep(0.01)
                continue
            try:
                await queue.take(self._lease, wait_seconds=0.3)
            except AWAY:
                await asyncio.sleep(0.1)

    async def _lease(self, hint: Hint) -> Outcome:
        if self.frozen:
            await asyncio.sleep(3600)
        key = (hint.job_id, hint.chunk)
        state, seq = await fold(self._store, subjects.chunk(*key), rules.evolve)
        try:
            event = rules.decide(state, rules.Lease(self.worker_id))
            recorded = await self._store.append(event, expected=seq)
        except (Rejected, Conflict):
            return Outcome.DONE
        self.held[key] = Held(rules.evolve(state, recorded), recorded.seq)
        self.leased.append(key)
        task = asyncio.create_task(self._work(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Outcome.DONE

    async def _work(self, key: tuple[JobId, int]) -> None:
        if self._gate is not None:
            await self._gate.acquire()
        try:
            await self.finish(key)
        except Rejected:
            self.lost.append(key)

    async def finish(self, key: tuple[JobId, int]) -> None:
        """Answer what has no result yet and hand it in; raises LeaseLost where it may not."""
        held = self.held[key]
        planned = held.chunk.planned
        if self.release_reason is not None:
            await self._append(key, rules.Release(held.chunk.epoch, self.release_reason))  # type: ignore[arg-type]
            return
        data = await self._blobs.get(planned.blob, start=planned.offset, length=planned.length)
        done = {
            row.index
            for segment in held.chunk.segments
            for row in decode_segment(await self._blobs.get(segment.blob))
        }
        rows = []
        for index, line in enumerate(request_lines(data)):
            if index not in done:
                custom_id = parse_request(line).custom_id
                written = result_line(planned.job_id, planned.chunk, index, custom_id)
                rows.append(Result(index, custom_id.startswith("bad"), written))
        half = len(rows) // 2
        if half:
            segment, usage = await self._put(held.chunk, rows[:half])
            await self._append(key, rules.Record(held.chunk.epoch, segment, usage))
        segment, usage = await self._put(self.held[key].chunk, rows[half:])
        await self._append(key, rules.Complete(held.chunk.epoch, segment, usage))

    async def _put(self, chunk: Chunk, rows: list[Result]) -> tuple[Segment, Usage]:
        planned = chunk.planned
        name = segment_key(planned.job_id, planned.chunk, chunk.epoch, len(chunk.segments))
        data = encode_segment(rows)
        await self._blobs.put(name, data)
        failed = sum(row.failed for row in rows)
        completed = len(rows) - failed
        return Segment(name, len(data), completed, failed), Usage(completed, 0, completed, 0)

    async def _append(self, key: tuple[JobId, int], command: rules.Command) -> Recorded:
        held = self.held[key]
        while True:
            event = rules.decide(held.chunk, command)
            try:
                recorded = await self._store.append(event, expected=held.seq)
            except Conflict:
                state, held.seq = await fold(self._store, subjects.chunk(*key), rules.evolve)
                assert state is not None
                held.chunk = state
                continue
            except EventStoreUnavailable:
                await asyncio.sleep(0.1)
                continue
            held.chunk, held.seq = rules.evolve(held.chunk, recorded), recorded.seq
            return recorded
