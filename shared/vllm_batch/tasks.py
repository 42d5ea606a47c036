"""Ending tasks for certain. Owns nothing.

Until Python 3.12, `asyncio.wait_for` returns a result that comes together with a cancellation and
swallows the cancellation; nats-py waits in that way. A task that has missed its cancellation runs
on, and whoever waits for its end waits for ever. So: in our code `asyncio.timeout`, and whoever
cancels does so again until the task has ended. `asyncio.TaskGroup` cancels its tasks once only:
not for tasks that talk to NATS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

AGAIN_SECONDS = 0.5


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel ``tasks`` and return when all have ended; how they ended is theirs to keep.

    Whoever is cancelled in here is so once all have ended.
    """
    pending = {task for task in tasks if not task.done()}
    cancelled: asyncio.CancelledError | None = None
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=AGAIN_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
        pending = {task for task in pending if not task.done()}
    if cancelled is not None:
        raise cancelled


async def first_to_end(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run ``coroutines`` together; the first that ends, however it ends, ends the others.

    Raises what the first one raised.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*tasks)
    for task in done:
        task.result()
