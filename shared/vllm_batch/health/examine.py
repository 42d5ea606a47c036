"""Looking at everything, each for as long as it may take, so that one that hangs hides no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import nats.errors
from nats.js.errors import Error as JetStreamError

from vllm_batch.errors import BatchError
from vllm_batch.health import infrastructure, labeling, work
from vllm_batch.health.report import Check, HealthReport, check_of, critical, report_of
from vllm_batch.health.sources import Sources
from vllm_batch.settings import Settings

CHECK_SECONDS = 5.0
PROBE_SECONDS = 2.0

_Look = Callable[[Sources], Awaitable[Check]]
_CHECKS: tuple[tuple[str, _Look], ...] = (
    ("event log", infrastructure.event_log),
    ("leaders", infrastructure.leaders),
    ("workers", work.workers),
    ("models", work.models),
    ("batches", work.batches),
    ("read models", infrastructure.read_models),
    ("storage", infrastructure.storage),
    ("webhooks", work.webhooks),
    ("budgets", work.budgets),
    ("labeling", labeling.webhooks_in),
    ("backup", infrastructure.backups),
)
_AWAY = (BatchError, nats.errors.Error, JetStreamError, TimeoutError, OSError)


async def examine(sources: Sources) -> HealthReport:
    """Look at everything; where the event log is away, at what does not need it."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await sources.store.last_sequence()
    except _AWAY as error:
        storage = await _look("storage", infrastructure.storage, sources)
        return report_of(sources.now, [log_away(sources.settings, error), storage])
    others = await asyncio.gather(*(_look(name, look, sources) for name, look in _CHECKS))
    return report_of(sources.now, list(others))


def log_away(settings: Settings, error: BaseException) -> Check:
    """Return the check of an event log that does not answer."""
    servers = ", ".join(url.rpartition("@")[2] or url for url in settings.nats_url.split(","))
    problem = critical(
        "The event log (NATS JetStream) does not answer: nothing can be submitted, and nothing "
        f"moves ({type(error).__name__}).",
        f"Start the NATS servers ({servers}), or see whether JetStream is full or has no leader: "
        "their /healthz says so. Everything goes on by itself afterwards.",
    )
    return check_of("event log", "away", [problem])


async def _look(name: str, look: _Look, sources: Sources) -> Check:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await look(sources)
    except _AWAY as error:
        why = str(error) or "it took too long"
        return Check(name=name, status="unknown", summary=f"could not be looked at: {why}")
