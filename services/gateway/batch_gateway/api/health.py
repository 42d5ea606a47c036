"""Health: is the process up, and can it do its work? No key is asked for."""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from batch_gateway.api.answers import answer
from batch_gateway.api.dependencies import Api, Dependencies
from vllm_batch.errors import EventStoreUnavailable

router = APIRouter(tags=["Health"])

PROBE_SECONDS = 2.0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """State in one word, and what is wrong in some more."""

    status: str
    problems: list[str] = []


@router.get("/healthz")
@router.head("/healthz", include_in_schema=False)
async def healthz() -> Response:
    """Say that the process is up."""
    return answer(Health(status="ok"))


@router.get("/readyz")
@router.head("/readyz", include_in_schema=False)
async def readyz(api: Api) -> Response:
    """Say whether requests can be served: 503 without the event log, degraded without Postgres."""
    log_answers = await _log_answers(api)
    problems = []
    if not log_answers:
        problems.append("the event log (NATS JetStream) does not answer: nothing can be written")
    if not api.reads.lists.available:
        problems.append("Postgres does not answer: lists are unavailable, everything else works")
    if not log_answers:
        return answer(Health(status="unavailable", problems=problems), status=503)
    return answer(Health(status="degraded" if problems else "ready", problems=problems))


async def _log_answers(api: Dependencies) -> bool:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await api.store.last_sequence()
    except (EventStoreUnavailable, TimeoutError):
        return False
    return True
