"""Letting a worker run empty: before it ends, and before another model is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from batch_gpu_worker.admission import Admission
from batch_gpu_worker.holdings import Holdings
from batch_gpu_worker.intake import Intake
from batch_gpu_worker.lease import ReleaseReason

LOOK_SECONDS = 0.02


async def run_empty(
    intake: Intake,
    admission: Admission,
    holdings: Holdings,
    reason: ReleaseReason,
    *,
    finish: float,
    hurried: Callable[[], bool] = lambda: False,
) -> None:
    """Begin nothing more, let what runs finish until ``finish`` (the loop's time) or until somebody
    is in a hurry; hand in, and give back the rest. On return nothing is held."""
    loop = asyncio.get_running_loop()
    closing = asyncio.create_task(intake.close())
    try:
        admission.close(reason)
        while admission.in_flight and loop.time() < finish and not hurried():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        while not closing.done() or len(holdings):
            for chunk in holdings:
                admission.end(chunk, reason)
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        closing.cancel()
