"""Tells the supervisor how a service is: the sd_notify protocol, as systemd speaks it.

Owns nothing. Writes datagrams to the socket that ``NOTIFY_SOCKET`` names; the embedded stack and
systemd both listen on one. Without the variable a notification goes nowhere, which is right for a
service that somebody started by hand.
"""

from __future__ import annotations

import os
import socket


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
