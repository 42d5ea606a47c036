"""Free TCP ports on loopback, outside the range the kernel takes outgoing ports from.

A server port inside that range can be taken by any client while the server restarts; a client that
retries its connection to loopback can even end up connected to itself.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping
from pathlib import Path

from vllm_batch.errors import StackError

_LOWEST = 15_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether a server could listen on ``host:port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def pick(
    preferred: int | None, *, avoid: frozenset[int] = frozenset(), rng: random.Random | None = None
) -> int:
    """Return ``preferred`` if it is free, else a free port that is not in ``avoid``."""
    if preferred and preferred not in avoid and is_free(preferred):
        return preferred
    rng = rng or random.SystemRandom()
    highest = _ephemeral_start() - 1
    for _ in range(_TRIES):
        port = rng.randint(_LOWEST, highest)
        if port not in avoid and is_free(port):
            return port
    raise StackError(
        f"no free TCP port found between {_LOWEST} and {highest}; give one with --port"
    )


def choose(
    usual: Mapping[str, int | None], before: Mapping[str, int], *, api: int | None
) -> dict[str, int]:
    """Return a port for each name of ``usual``: that of the last time, or the usual one, or any.

    ``api``: the port of that name; 0 takes any free one, None the usual ones where they are free.
    """
    found: dict[str, int] = {}
    for name, wanted in usual.items():
        if name == "api" and api:
            found[name] = require(api)
            continue
        preferred = before.get(name) or (wanted if api is None else None)
        found[name] = pick(preferred, avoid=frozenset(found.values()))
    return found


def loopback_url(port: int, *, tls: object = None) -> str:
    """Return the root URL of a server of ours; ``tls``: its certificate, if it has one."""
    return f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"


def require(port: int) -> int:
    """Return ``port`` if it is free. Raises StackError otherwise: it was asked for by number."""
    if not is_free(port):
        raise StackError(f"port {port} is taken by another program; choose another with --port")
    return port


def _ephemeral_start() -> int:
    try:
        start = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        start = 32_768
    return start if start > _LOWEST + 1000 else 61_000
