"""The duty that delivers: nobody's endpoints hold up those of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.facts import append, ended, submitted
from tests.worker_bench import until

from batch_gateway.webhooks.sender import Sender
from vllm_batch.clock import SystemClock
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events.webhook import WebhookEndpointCreated
from vllm_batch.ids import ProjectId
from vllm_batch.metrics.orchestrator import WebhookMetrics
from vllm_batch.settings import Settings

IN_FLIGHT_MAX = 8
ENDPOINTS = 20


def endpoint(project: str, number: int = 0) -> WebhookEndpointCreated:
    return WebhookEndpointCreated(
        endpoint_id=f"we_{project}{number}", project=ProjectId(project), name="n",
        url=f"https://{project}.example.com/{number}", event_types=["batch.completed"],
    )  # fmt: skip


@asynccontextmanager
async def delivering(sender: Sender) -> AsyncIterator[None]:
    running = asyncio.create_task(sender.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("endpoints", [1, ENDPOINTS])
async def test_endpoints_that_hang_hold_up_those_of_no_other_project(
    tmp_path: Path, endpoints: int
) -> None:
    posted: list[str] = []

    async def post(url: str, _body: str, _headers: dict[str, str]) -> int:
        posted.append(url)
        if "slow" in url:
            await asyncio.Event().wait()
        return 204

    store = MemoryEventStore(clock=SystemClock())
    settings = Settings(home=tmp_path, secret_key="s" * 32, webhook_in_flight_max=IN_FLIGHT_MAX)
    await append(store, *(endpoint("slow", n) for n in range(endpoints)), endpoint("quick"))
    metrics = WebhookMetrics(CollectorRegistry())
    async with delivering(Sender(store, settings, SystemClock(), post, metrics)):
        for batch in range(6):
            await append(store, submitted(f"batch_s{batch}", project="slow"))
            await append(store, ended(f"batch_s{batch}"))
        await until(lambda: len(posted) >= min(IN_FLIGHT_MAX // 2, 4 * endpoints))
        await append(store, submitted("batch_q", project="quick"), ended("batch_q"))
        await until(lambda: any("quick" in url for url in posted))
    assert sum("slow" in url for url in posted) <= IN_FLIGHT_MAX // 2
