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
    view = services.live.fleet.find(worker) if worker else None
    worker_id = view.worker_id if view else None
    yield b"\n"  # the headers go out now, though there may be no line yet
    start = await _start(services, worker_id)
    pages = telemetry.follow_pages(services.client, worker_id=worker_id, after=max(after, start))
    async for page in pages:
        if sign_in.user(services.live.users, services.clock.now()) is None:
            return
        yield b"".join(_as_json(services, logged) for logged in page)


async def _start(services: Services, worker_id: WorkerId | None) -> int:
    """Return the sequence after which the newest lines are; NATS may be busy for a while."""
    count = services.settings.admin_log_lines_max
    while True:
        try:
            return await telemetry.before_last(services.client, worker_id=worker_id, count=count)
        except EventStoreUnavailable as error:
            log.info("log lines wait", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)


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
