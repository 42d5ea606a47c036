"""``python -m batch_gpu_worker``: settings, logs, connections, signals, and the agent."""

from __future__ import annotations

import asyncio
import random
import signal
import sys

import structlog
import uvloop

from batch_gpu_worker.agent import Agent, StopSignal, new_worker_id
from batch_gpu_worker.engines import open_engine
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import BatchError
from vllm_batch.event_store import jetstream
from vllm_batch.settings import Settings
from vllm_batch.telemetry import configure_logs

log = structlog.get_logger(__name__)

# The decoder counts nesting against Python's own limit; some of it is taken by the frames below.
_FRAMES = 1000


async def serve(settings: Settings) -> int:
    """Run one worker until SIGTERM or SIGINT; return the exit status."""
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    worker_id = new_worker_id()
    blobs = open_blobs(settings.blob_url)
    async with jetstream.connect(settings, source=worker_id) as store:
        agent = Agent(
            settings,
            store,
            blobs,
            open_engine(settings),
            clock=SystemClock(),
            worker_id=worker_id,
            rng=random.Random(),  # noqa: S311 - jitter, no secret
        )
        return await agent.run(stop)


def main() -> int:
    """Run the worker; return the exit status: 0 asked to end, 1 failed."""
    settings = Settings()
    configure_logs(settings, service="gpu-worker")
    structlog.contextvars.bind_contextvars(worker=settings.worker_name)
    sys.setrecursionlimit(settings.json_depth_max + _FRAMES)
    try:
        return uvloop.run(serve(settings))
    except BatchError as error:
        log.error("the worker cannot run", code=error.code, error=str(error))
        return 1
    finally:
        # The loop's handler is gone: one more SIGTERM must not spoil a clean end.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
