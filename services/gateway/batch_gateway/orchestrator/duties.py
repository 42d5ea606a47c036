"""Running a duty: what goes wrong in it is logged with its name, and it starts again after a pause.

The outermost loop, and the only place here that catches everything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)

_PAUSE_SECONDS = 0.5
_PAUSE_SECONDS_MAX = 10.0
_HEALTHY_SECONDS = 60.0


async def keep_running(
    name: str,
    duty: Callable[[], Awaitable[None]],
    *,
    rng: random.Random,
    on_crash: Callable[[str], None] = lambda _: None,
) -> None:
    """Run ``duty`` for ever; a crash costs a pause that doubles up to ten seconds.

    ``on_crash`` hears the name of a duty that crashed.
    """
    loop = asyncio.get_running_loop()
    pause = _PAUSE_SECONDS
    while True:
        began = loop.time()
        try:
            await duty()
            log.error("duty ended", duty=name)
        except Exception:  # see the module's docstring
            log.exception("duty crashed", duty=name)
            on_crash(name)
        if loop.time() - began > _HEALTHY_SECONDS:
            pause = _PAUSE_SECONDS
        await asyncio.sleep(pause * rng.uniform(0.7, 1.3))
        pause = min(pause * 2, _PAUSE_SECONDS_MAX)
