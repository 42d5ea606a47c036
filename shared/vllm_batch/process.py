"""A service as a process: settings, logs and traces; it serves until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvloop

from vllm_batch import tasks
from vllm_batch.errors import BatchError
from vllm_batch.notify import alive
from vllm_batch.settings import Settings
from vllm_batch.telemetry import configure_logs
from vllm_batch.tracing.export import exporting

log = structlog.get_logger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT)


def run(service: str, serve: Callable[[Settings], Coroutine[Any, Any, None]]) -> int:
    """Serve until told to stop; return the exit status: 1 where it cannot start or go on."""
    settings = Settings()
    configure_logs(settings, service=service)
    try:
        with exporting(settings, service=service):
            uvloop.run(alive(serve(settings)))
    except BatchError as error:
        log.error("cannot run", error=str(error), code=error.code)
        return 1
    return 0


async def until_told(serving: Coroutine[Any, Any, None]) -> None:
    """Run what never returns until SIGTERM or SIGINT. Raises what it raises."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in STOPPING:
        loop.add_signal_handler(number, stopping.set)
    running = asyncio.create_task(serving)
    asked = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        log.info("stopping")
    finally:
        await tasks.end(running, asked)
        for number in STOPPING:
            loop.remove_signal_handler(number)
