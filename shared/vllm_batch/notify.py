"""Tells the supervisor how a service is: the sd_notify protocol, as systemd speaks it.

Owns nothing. Writes datagrams to the socket that ``NOTIFY_SOCKET`` names; the embedded stack and
systemd both listen on one. Without the variable a notification goes nowhere, which is right for a
service that somebody started by hand.

Containers have no such supervisor: there, whoever checks their health looks at how old the file is
that ``VLLM_BATCH_ALIVE_FILE`` names.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
_MICROSECONDS = 1_000_000
_PINGS_PER_PERIOD = 3
_TOUCH_SECONDS = 5.0


def notify(**fields: str | int) -> bool:
    """Send ``fields``, such as ``READY=1`` or ``STATUS="loading the model"``, to the supervisor.

    Returns whether anybody was told. Never raises: a supervisor that has gone must not take the
    service with it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not fields:
        return False
    if address.startswith("@"):  # Linux abstract namespace
        address = "\0" + address[1:]
    lines = (f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(address)
            sender.send("\n".join(lines).encode())
    except OSError:
        return False
    return True


async def alive(service: Coroutine[Any, Any, Result]) -> Result:
    """Run ``service`` and tell the supervisor all the while that its event loop turns.

    Systemd asks for that with ``WATCHDOG_USEC`` (WatchdogSec= in the unit), and ends a service that
    falls silent; containers ask for it with ``VLLM_BATCH_ALIVE_FILE``, which is touched every 5
    seconds. Without either variable this is ``await service``.
    """
    signs = []
    if (period := _watchdog_seconds()) is not None:
        signs.append(_every(period / _PINGS_PER_PERIOD, lambda: notify(WATCHDOG=1)))
    if file := os.environ.get("VLLM_BATCH_ALIVE_FILE"):
        signs.append(_every(_TOUCH_SECONDS, Path(file).touch))
    tasks = [asyncio.create_task(sign) for sign in signs]
    try:
        return await service
    finally:
        for task in tasks:
            task.cancel()


async def _every(seconds: float, sign: Callable[[], object]) -> None:
    while True:
        sign()
        await asyncio.sleep(seconds)


def _watchdog_seconds() -> float | None:
    """Return the period that this process was given, None if it was given none."""
    period = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID", "")
    if not period.isdecimal() or int(period) == 0 or meant_for not in {"", str(os.getpid())}:
        return None
    return int(period) / _MICROSECONDS
