"""``python -m batch_gpu_worker [trainer]``: settings, logs, connections, signals, and the agent.

SIGTERM and SIGUSR1 (what batch schedulers send ahead of the end) drain; a second signal hurries.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

import structlog
import uvloop

from batch_gpu_worker.agent import Agent, StopSignal, new_worker_id
from batch_gpu_worker.engines import open_engine
from batch_gpu_worker.trainer import main as trainer
from vllm_batch import process, tasks
from vllm_batch.blobs import open_blobs
from vllm_batch.clock import SystemClock
from vllm_batch.errors import BatchError
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import Access
from vllm_batch.log_stream import LogStream
from vllm_batch.metrics.event_log import EventLogMetrics
from vllm_batch.metrics.exposition import exposed
from vllm_batch.notify import alive
from vllm_batch.settings import Settings
from vllm_batch.telemetry import configure_logs
from vllm_batch.tracing.export import exporting

log = structlog.get_logger(__name__)

# The decoder counts nesting against Python's own limit; some of it is taken by the frames below.
_FRAMES = 1000


_STOPPING = (*process.STOPPING, signal.SIGUSR1)


async def serve(settings: Settings, stop: StopSignal, logs: LogStream) -> int:
    """Run one worker until it is asked to stop; return the exit status."""
    loop = asyncio.get_running_loop()
    for number in _STOPPING:
        loop.add_signal_handler(number, stop.ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)  # see _start_anew
    worker_id = new_worker_id()
    blobs = open_blobs(settings.blob_url)
    async with (
        exposed(settings, service="gpu-worker") as exposition,
        jetstream.connect(
            settings,
            source=worker_id,
            access=Access.FILTERED,
            metrics=EventLogMetrics(exposition.registry),
        ) as store,
    ):
        agent = Agent(
            settings,
            store,
            blobs,
            open_engine(settings),
            clock=SystemClock(),
            worker_id=worker_id,
            rng=random.Random(),  # noqa: S311 - jitter, no secret
            logs=logs,
            exposition=exposition,
        )
        client = store.connection.client
        sending = asyncio.create_task(logs.run(client, worker_id))
        try:
            return await agent.run(stop)
        finally:
            await tasks.end(sending)
            await logs.flush(client, worker_id)


def main() -> int:
    """Run the worker; return the exit status: 0 asked to end, 1 failed."""
    if sys.argv[1:] == ["trainer"]:
        return process.run("trainer", trainer.serve)
    settings = Settings()
    stop, logs = StopSignal(), LogStream(settings)
    configure_logs(settings, service="gpu-worker", tap=logs)
    structlog.contextvars.bind_contextvars(worker=settings.worker_name)
    sys.setrecursionlimit(settings.json_depth_max + _FRAMES)
    try:
        with exporting(settings, service="gpu-worker"):
            status = uvloop.run(alive(serve(settings, stop, logs)))
    except BatchError as error:
        log.error("the worker cannot run", code=error.code, error=str(error))
        return 1
    finally:
        # The loop's handlers are gone: one more signal must not spoil a clean end.
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        logs.close()
    if stop.start_anew and status == 0:
        _start_anew()
    return status


def _start_anew() -> None:
    """Become a fresh worker in the same process: whoever supervises it need not know.

    A signal that arrives in between is still pending when its handler is installed again.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    for number in _STOPPING:
        signal.signal(number, signal.SIG_DFL)
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - no shell, our own command line


if __name__ == "__main__":
    sys.exit(main())
