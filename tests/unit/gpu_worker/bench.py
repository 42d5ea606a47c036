"""Chunks and engines for unit tests of the worker: no server, no socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from batch_gpu_worker.effort import EffortMeter
from batch_gpu_worker.engines.base import EngineResponse, ignore_death
from batch_gpu_worker.engines.death import Death
from batch_gpu_worker.holdings import HeldChunk
from batch_gpu_worker.lease import Lease
from batch_gpu_worker.online_load import OnlineLoad
from vllm_batch.errors import EngineCrashed
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import ChunkPlanned
from vllm_batch.ids import JobId, WorkerId

ENDPOINT = "/v1/chat/completions"
ME = WorkerId("worker_1")


def effort_meter() -> EffortMeter:
    """Return a meter of a worker without GPUs."""
    return EffortMeter(OnlineLoad(), time.monotonic)


def planned(
    job: str = "batch_j", chunk: int = 0, *, count: int = 3, alias: str | None = None
) -> ChunkPlanned:
    """Return a plan; the blob it names does not exist."""
    return ChunkPlanned(
        job_id=JobId(job), chunk=chunk, blob="files/f", offset=0, length=1, first_line=1,
        count=count, endpoint=ENDPOINT, model="m", alias=alias,
    )  # fmt: skip


def line(index: int, body: str = '{"model":"m"}') -> bytes:
    """Return the line of a request whose custom_id is ``r<index>``."""
    return f'{{"custom_id":"r{index}","method":"POST","url":"{ENDPOINT}","body":{body}}}'.encode()


async def held(
    store: MemoryEventStore,
    job: str = "batch_j",
    chunk: int = 0,
    *,
    count: int = 3,
    alias: str | None = None,
) -> HeldChunk:
    """Plan and lease a chunk."""
    await store.append(planned(job, chunk, count=count, alias=alias), expected=0)
    lease = await Lease.take(store, JobId(job), chunk, worker_id=ME)
    return HeldChunk(lease, [line(index) for index in range(count)])


Step = EngineResponse | Exception | Callable[[], Awaitable[object]]


class ScriptedEngine:
    """Does what the test says, call after call; the last step is repeated."""

    def __init__(self, *steps: Step) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.on_death: Callable[[Death], None] = ignore_death
        self.max_num_seqs = 128
        self.bodies: list[bytes] = []
        self.steps = list(steps)

    @property
    def pid(self) -> int | None:
        return None

    async def start(self) -> None: ...

    async def wait_failed(self) -> None: ...

    async def stop(self) -> None: ...

    async def models(self) -> list[str]:
        return ["m"]

    async def progress(self) -> int | None:
        return None

    async def canary(self) -> None: ...

    async def halt(self, death: Death) -> None: ...

    def resume(self) -> None: ...

    def owns(self, pid: int) -> bool:
        return False

    async def complete(self, endpoint: str, body: bytes) -> EngineResponse:
        self.bodies.append(body)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, EngineCrashed):
            self.on_death(Death("crashed", "scripted"))
        if isinstance(step, Exception):
            raise step
        if isinstance(step, EngineResponse):
            return step
        await step()
        return EngineResponse(200, b"{}")
