"""A training on a single GPU waits until batches are through."""

from __future__ import annotations

import asyncio

import pytest
from tests.facts import START, submitted

from batch_gpu_worker.trainer.backlog import Backlog
from vllm_batch.clock import ManualClock
from vllm_batch.events import Event, JobFailed, Recorded
from vllm_batch.ids import EventId, JobId


class Scene:
    def __init__(self, idle_seconds: float) -> None:
        self.clock = ManualClock(START)
        self.backlog = Backlog(idle_seconds, self.clock)

    def add(self, event: Event) -> None:
        seq = self.backlog.position + 1
        self.backlog.apply(Recorded(seq, EventId(f"evt_{seq}"), START, "test", event))

    async def is_idle(self) -> bool:
        try:
            async with asyncio.timeout(0.01):
                await self.backlog.idle()
        except TimeoutError:
            return False
        return True


async def test_it_is_idle_when_no_batch_was_open_for_long_enough() -> None:
    scene = Scene(60)
    scene.clock.advance(61)
    scene.add(submitted("batch_1"))
    scene.add(submitted("batch_2"))
    assert not await scene.is_idle()
    scene.add(JobFailed(job_id=JobId("batch_1"), errors=[], error_count=0))
    scene.clock.advance(61)
    assert not await scene.is_idle(), "the other one is open"
    scene.add(JobFailed(job_id=JobId("batch_2"), errors=[], error_count=0))
    assert not await scene.is_idle(), "the last one has only just ended"
    scene.clock.advance(61)
    assert await scene.is_idle()


@pytest.mark.parametrize("open_jobs", [0, 1])
async def test_nobody_waits_unless_it_is_asked_for(open_jobs: int) -> None:
    scene = Scene(0)
    for number in range(open_jobs):
        scene.add(submitted(f"batch_{number}"))
    assert await scene.is_idle()
