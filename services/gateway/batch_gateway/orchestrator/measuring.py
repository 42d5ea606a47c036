"""What the orchestrator looks at when Prometheus asks: its board, who is alive, the streams."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import nats.errors
from nats.js.errors import Error as JetStreamError
from prometheus_client import Gauge

from batch_gateway.orchestrator.board import Board, JobView
from batch_gateway.orchestrator.roster import Roster
from batch_gateway.webhooks.sender import Sender
from vllm_batch.aggregates.job import JobStatus
from vllm_batch.clock import Clock
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.messaging import topology
from vllm_batch.metrics.duties import DutyMetrics
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.exposition import Exposition
from vllm_batch.metrics.orchestrator import OrchestratorMetrics, WebhookMetrics

STREAM_SECONDS = 1.0


class Measuring:
    """The process's metrics, which outlive a term of leading."""

    def __init__(self, exposition: Exposition) -> None:
        self.event_log = EventLogMetrics(exposition.registry)
        self.orchestrator = OrchestratorMetrics(exposition.registry)
        self.webhooks = WebhookMetrics(exposition.registry)
        self.duties = DutyMetrics(exposition.registry)
        self._exposition = exposition

    @contextmanager
    def connected(self, store: JetStreamEventStore) -> Iterator[None]:
        """Measure the connection while the context lasts."""

        async def refresh() -> None:
            store.measure_connection()

        with self._exposition.on_scrape(refresh):
            yield
        self.event_log.connected.set(0)

    @contextmanager
    def delivering(self, sender: Sender) -> Iterator[None]:
        """Measure what waits to be delivered while the context lasts."""

        async def refresh() -> None:
            sender.measure()

        try:
            with self._exposition.on_scrape(refresh):
                yield
        finally:
            self.webhooks.pending.set(0)
            self.webhooks.endpoints.clear()

    @contextmanager
    def leading(
        self, board: Board, roster: Roster, store: JetStreamEventStore, clock: Clock
    ) -> Iterator[None]:
        """Measure what only the leader knows while the context lasts."""
        metrics = self.orchestrator

        async def refresh() -> None:
            measure_board(metrics, board, clock)
            measure_workers(metrics, board, roster)
            await _measure_streams(metrics, store)

        metrics.leader.set(1)
        try:
            with self._exposition.on_scrape(refresh):
                yield
        finally:
            metrics.leader.set(0)
            for gauge in (
                metrics.queued, metrics.chunks, metrics.batches, metrics.workers,
                metrics.model_workers, metrics.stream_bytes, metrics.stream_messages,
            ):  # fmt: skip
                gauge.clear()
            metrics.oldest_batch.set(0)
            metrics.oldest_lease.set(0)


def measure_board(metrics: OrchestratorMetrics, board: Board, clock: Clock) -> None:
    """Set what is open, and since when."""
    now = clock.now()
    requests: Counter[str] = Counter()
    chunks: Counter[tuple[str, str]] = Counter()
    states: Counter[str] = Counter()
    submitted, leased = [now], [now]
    for view in board.jobs.values():
        states[view.job.status.value] += 1
        submitted.append(view.job.times[JobStatus.VALIDATING])
        for state, numbers in (("ready", view.ready), ("leased", view.leased)):
            _count(view, state, numbers, requests, chunks)
        leased += [view.chunks[number].leased_at or now for number in view.leased]
    _set_all(metrics.queued, {(model,): count for model, count in requests.items()})
    _set_all(metrics.chunks, chunks)
    _set_all(metrics.batches, {(state,): count for state, count in states.items()})
    metrics.oldest_batch.set(max(0.0, (now - min(submitted)).total_seconds()))
    metrics.oldest_lease.set(max(0.0, (now - min(leased)).total_seconds()))


def _count(
    view: JobView,
    state: str,
    numbers: set[int],
    requests: Counter[str],
    chunks: Counter[tuple[str, str]],
) -> None:
    for number in numbers:
        chunk = view.chunks[number].chunk
        requests[chunk.planned.model] += chunk.remaining
        chunks[chunk.planned.model, state] += 1


def measure_workers(metrics: OrchestratorMetrics, board: Board, roster: Roster) -> None:
    """Set who is alive, and how many serve each model that there is or that has work."""
    roster.sync()
    states: Counter[str] = Counter({"alive": 0, "silent": 0})
    for worker in board.workers.values():
        states["alive" if roster.is_alive(worker) else "silent"] += not worker.gone
    _set_all(metrics.workers, {(state,): count for state, count in states.items()})
    wanted = {
        view.model_of(number)
        for view in board.jobs.values()
        for number in (*view.ready, *view.leased)
    }
    serving = dict.fromkeys(wanted | board.models, 0) | roster.alive_by_model()
    _set_all(metrics.model_workers, {(model,): count for model, count in serving.items()})


async def _measure_streams(metrics: OrchestratorMetrics, store: JetStreamEventStore) -> None:
    with suppress(nats.errors.Error, JetStreamError, TimeoutError, ConnectionError):
        async with asyncio.timeout(STREAM_SECONDS):
            for name in (topology.EVENTS, topology.WORK, topology.TELEMETRY):
                state = (await store.js.stream_info(name)).state
                metrics.stream_bytes.labels(name).set(state.bytes)
                metrics.stream_messages.labels(name).set(state.messages)


def _set_all(gauge: Gauge, values: dict[tuple[str, ...], int] | Counter[tuple[str, str]]) -> None:
    """Set these and drop what is not there any more."""
    gauge.clear()
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
