"""Managing workers over HTTP (beyond OpenAI): what ``vllm-batch worker`` does, for programs.

Everything under ``/admin`` takes a key with the scope ``admin``. Reads the event log and telemetry,
never Postgres; orders go to the workers over NATS, and each becomes an event that names the key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query
from nats.aio.client import Client
from starlette.responses import Response

from batch_gateway.api.answers import answer, documented
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal, shown
from vllm_batch import fleet, fleet_report, worker_orders
from vllm_batch.errors import NotFound, WorkerUnreachable
from vllm_batch.fleet_report import QueueReport, WorkerReport
from vllm_batch.log_stream import LEVELS, Level
from vllm_batch.messaging import telemetry
from vllm_batch.worker_control import ClearGpu, Command, Kill, Restart

router = APIRouter(prefix="/admin", tags=["Admin"])

TAIL_MAX = 10_000
_ERRORS = frozenset({"error", "critical"})


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Every worker, and the open work of each model."""

    workers: list[WorkerReport]
    queues: list[QueueReport]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker answered to an order."""

    worker: str
    message: str
    data: dict[str, Any] = {}


class WorkerLogs(msgspec.Struct, frozen=True, kw_only=True):
    """The newest log lines, oldest first. ``total_lines``: all there are, whatever their level;
    the counts are of the newest ``tail`` lines, before ``level`` was applied."""

    logs: list[dict[str, Any]]
    total_lines: int
    error_count: int
    warning_count: int


def _client(api: Dependencies) -> Client:
    if api.client is None:
        raise HttpRefusal(503, "This server has no connection to the workers.")
    return api.client


@router.get("/workers", responses=documented(Workers))
async def list_workers(
    api: Api,
    _: CalledBy,
    everybody: Annotated[bool, Query(alias="all")] = False,
) -> Response:
    """List the workers as they are now; ``all``: those that left on purpose too."""
    now = api.clock.now()
    workers = await fleet_report.workers(api.store, _client(api), now, gone=everybody)
    return answer(Workers(workers=workers, queues=await fleet_report.queues(api.store)))


@router.get("/workers/{worker}", responses=documented(WorkerReport))
async def retrieve_worker(worker: str, api: Api, _: CalledBy) -> Response:
    """Retrieve a worker by name or id."""
    found = await _find(api, worker)
    workers = await fleet_report.workers(api.store, _client(api), api.clock.now(), gone=True)
    for report in workers:
        if report.name == found.name:
            return answer(report)
    raise HttpRefusal(404, f"There is no worker '{shown(worker)}'.")


@router.post("/workers/{worker}/restart", responses=documented(Order))
async def restart_worker(worker: str, api: Api, caller: CalledBy, now: bool = False) -> Response:
    """Restart a worker after what runs is finished, or ``now``."""
    return await _order(api, worker, Restart(requested_by=caller.key_id, now=now))


@router.post("/workers/{worker}/clear-gpu", responses=documented(Order))
async def clear_gpu(worker: str, api: Api, caller: CalledBy) -> Response:
    """Stop a worker's engine, kill what it left on the GPU, start it again."""
    return await _order(api, worker, ClearGpu(requested_by=caller.key_id))


@router.post("/workers/{worker}/kill", responses=documented(Order))
async def kill_engine(worker: str, api: Api, caller: CalledBy) -> Response:
    """Kill a worker's engine at once; the worker starts a new one."""
    return await _order(api, worker, Kill(requested_by=caller.key_id))


@router.post("/workers/{worker}/clear", responses=documented(Order))
async def clear_crash_loop(worker: str, api: Api, caller: CalledBy) -> Response:
    """Say that a worker's crash loop is mended: the watchdog starts it again."""
    await _find(api, worker)
    found = await worker_orders.clear(api.store, worker, requested_by=caller.key_id)
    return answer(Order(worker=found.name, message="cleared"))


@router.get("/worker-logs/content", responses=documented(WorkerLogs))
async def worker_logs(
    api: Api,
    _: CalledBy,
    tail: Annotated[int, Query(ge=0, le=TAIL_MAX)] = 100,
    level: Literal["debug", "info", "warning", "error", "critical"] = "debug",
    worker: str = "",
) -> Response:
    """Return the newest log lines of one worker or of all; ``level``: this one and worse."""
    known = await fleet.load(api.store)
    if worker and known.find(worker) is None:
        raise HttpRefusal(404, f"There is no worker '{shown(worker)}'.")
    found = await telemetry.tail(
        _client(api), workers=known.processes(worker) if worker else None, count=tail
    )
    wanted = frozenset(LEVELS[LEVELS.index(level) :])
    levels: list[Level] = [logged.line.level for logged in found.lines]
    names = {worker_id: view.name for worker_id, view in known.workers.items()}
    return answer(
        WorkerLogs(
            logs=[
                {"worker": names.get(logged.worker_id, logged.worker_id)}
                | msgspec.to_builtins(logged.line)
                for logged in found.lines
                if logged.line.level in wanted
            ],
            total_lines=found.total,
            error_count=sum(one in _ERRORS for one in levels),
            warning_count=levels.count("warning"),
        )
    )


async def _find(api: Dependencies, worker: str) -> fleet.WorkerView:
    try:
        return await worker_orders.find(api.store, worker)
    except NotFound:
        raise HttpRefusal(404, f"There is no worker '{shown(worker)}'.") from None


async def _order(api: Dependencies, worker: str, command: Command) -> Response:
    found = await _find(api, worker)
    try:
        reply = await worker_orders.order(api.store, _client(api), found.worker_id, command)
    except WorkerUnreachable as error:
        raise HttpRefusal(503, f"{found.name}: {error}", code=error.code) from error
    if not reply.ok:
        raise HttpRefusal(409, reply.message, code="order_refused")
    return answer(Order(worker=found.name, message=reply.message, data=reply.data))
