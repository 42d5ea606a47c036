"""Log lines for the viewer: newline-delimited JSON, the newest that are kept and then what comes.

Reads TELEMETRY a page at a time, so that memory does not go with how many lines there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import structlog
from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from batch_admin.services import Services
from batch_admin.sessions import SignIn
from vllm_batch.errors import EventStoreUnavailable
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import telemetry
from vllm_batch.messaging.telemetry import LoggedLine

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
PATH = "/admin/worker-logs/lines"


def create_router(services: Services) -> APIRouter:
    """Return the route of log lines."""
    router = APIRouter()

    @router.get(PATH)
    async def lines(request: Request, worker: str = "", after: int = 0) -> StreamingResponse:
        return StreamingResponse(
            _lines(services, request.state.sign_in, worker, after),
            media_type="application/jsonl",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return router


async def _lines(
    services: Services, sign_in: SignIn, worker: str, after: int
) -> AsyncIterator[bytes]:
    yield b"\n"  # the headers go out now, though there may be no line yet
    async for page in _pages(services, worker, after):
        if sign_in.user(services.live.users, services.clock.now()) is None:
            return
        yield b"".join(_as_json(services, logged) for logged in page)


async def _pages(services: Services, worker: str, after: int) -> AsyncIterator[list[LoggedLine]]:
    """Yield the newest lines that are kept of every process of ``worker``, then what comes."""
    client, fleet = services.client, services.live.fleet
    workers = fleet.processes(worker) if worker else None
    until, start = await _bounds(services, workers)
    try:
        start = max(after, start)
        async for page in telemetry.past_pages(client, workers=workers, after=start, until=until):
            yield page
    except EventStoreUnavailable as error:  # the viewer asks again for what comes after
        log.info("log lines wait", error=str(error))
        return

    def of(worker_id: WorkerId) -> bool | None:
        return not worker or fleet.is_of(worker_id, worker)

    async for page in telemetry.follow_pages(client, of=of, after=max(after, until)):
        yield page


async def _bounds(services: Services, workers: list[WorkerId] | None) -> tuple[int, int]:
    """Return the last sequence of the log lines and the one after which the newest lines are; NATS
    may be busy for a while."""
    count = services.settings.admin_log_lines_max
    while True:
        try:
            until = await telemetry.last_sequence(services.client)
            start = await telemetry.before_last(services.client, workers=workers, count=count)
        except EventStoreUnavailable as error:
            log.info("log lines wait", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return until, start


def _as_json(services: Services, logged: LoggedLine) -> bytes:
    line = logged.line
    extra = " ".join(f"{name}={value}" for name, value in line.fields.items())
    values = (
        logged.seq,
        line.time,
        line.level,
        _name(services, logged.worker_id),
        line.source,
        f"{line.message}  {extra}" if extra else line.message,
    )
    return msgspec.json.encode(values) + b"\n"


def _name(services: Services, worker_id: WorkerId) -> str:
    view = services.live.fleet.workers.get(worker_id)
    return view.name if view else worker_id
