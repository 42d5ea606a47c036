"""Starts and stops a whole stack for the commands: in this process, or in one that stays behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vllm_batch.cli.stack_view import StackView
from vllm_batch.errors import StackError
from vllm_batch.local import leftovers, state
from vllm_batch.local.home import Home, holder_of
from vllm_batch.local.stack import ALL_ROLES, DEFAULT_PORT, EngineName, LocalStack
from vllm_batch.local.state import StackState
from vllm_batch.local.validated import validated_settings
from vllm_batch.notify import notify
from vllm_batch.settings import Settings
from vllm_batch.telemetry import configure_logs

_DOWN_SECONDS = 90.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class StackOptions:
    """What `up` was asked for; None and empty mean: as the settings or the defaults say."""

    home: Home
    engine: str | None = None
    port: int | None = None
    workers: int = 1
    model: str = ""

    def as_arguments(self) -> list[str]:
        """Return the options of an `up` that does the same."""
        arguments = ["--home", str(self.home.root), "--workers", str(self.workers)]
        if self.engine:
            arguments += ["--engine", self.engine]
        if self.port is not None:
            arguments += ["--port", str(self.port)]
        if self.model:
            arguments += ["--model", self.model]
        return arguments


def run_here(options: StackOptions, *, quiet: bool) -> None:
    """Run the stack until a signal stops it. ``quiet``: tell a waiting parent, not a terminal."""
    view = StackView()
    stack = _stack(options, _Quiet() if quiet else view)
    with _stop_signals(stack) as stop, contextlib.nullcontext() if quiet else view.live():
        stack.start()
        notify(READY=1, STATUS="ready")
        if not quiet:
            view.progress(f"{describe_api(stack.api_url)}   stop with Ctrl-C")
        stop.wait()
        notify(STOPPING=1)
        view.progress("stopping (again Ctrl-C: at once)")
        stack.stop()


def describe_api(api_url: str) -> str:
    """Return where the API is, and a word about it when that is not the usual place."""
    usual = f":{DEFAULT_PORT}/" in api_url
    return f"API {api_url}" + ("" if usual else f" (not {DEFAULT_PORT}: taken, or not asked for)")


def start_detached(options: StackOptions) -> StackState:
    """Start the stack in a process of its own and return when it is ready.

    Raises StackError with what that process said when it ends before.
    """
    home = options.home
    home.create()
    if home.is_locked():
        with home.lock():  # raises, naming the holder
            pass
    view = StackView()
    log = home.log_of("supervisor")
    with _notifications(home) as (receiver, address), view.live(), log.open("ab") as log_file:
        log_start = log_file.tell()
        process = subprocess.Popen(
            (sys.executable, "-m", "vllm_batch.cli", "up", "--supervise", *options.as_arguments()),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            env={**os.environ, "NOTIFY_SOCKET": address},
            start_new_session=True,
        )
        try:
            _wait_ready(process, receiver, home, view)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode is not None:
        words = log.read_bytes()[log_start:].decode(errors="replace").strip()
        *_, said = ("\n" + words).rpartition("\nerror: ")
        raise StackError(said or "the supervisor ended without a word")
    return state.read(home.state_file)


def stop_stack(home: Home, *, now: bool = False) -> bool:
    """Stop the stack of ``home`` and what an earlier one left; returns whether there was any."""
    found = state.read(home.state_file)
    if not found.is_alive:
        if home.is_locked() and (holder := holder_of(home.lock_file)):
            os.kill(holder, signal.SIGTERM)  # it has only just begun to start
            return True
        return bool(
            leftovers.end_marked(home.mark)
            or leftovers.end_recorded((s.pid, s.started) for s in found.services if s.pid)
        )
    os.kill(found.pid, signal.SIGTERM)
    if now:
        time.sleep(_LOOK_SECONDS)  # two signals at once would count as one
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGTERM)
    view = StackView()
    deadline = time.monotonic() + _DOWN_SECONDS
    with view.live():
        while leftovers.is_same(found.pid, found.started):
            view.changed(state.read(home.state_file))
            if time.monotonic() > deadline:
                raise StackError(
                    f"process {found.pid} has not ended within {_DOWN_SECONDS:g} s;"
                    " `vllm-batch down --now` does not wait for running requests"
                )
            time.sleep(_LOOK_SECONDS)
        view.changed(state.read(home.state_file))
    return True


class _Quiet:
    """Tells the process that waits for a detached stack."""

    def progress(self, text: str) -> None:
        notify(STATUS=text)

    def changed(self, _state: StackState) -> None:
        notify(X_CHANGED=1)


def _stack(options: StackOptions, view: StackView | _Quiet) -> LocalStack:
    settings = validated_settings(options.home)
    configure_logs(settings.model_copy(update={"log_level": "WARNING"}), service="supervisor")
    given = settings.model_fields_set
    engine = options.engine or (settings.engine if "engine" in given else "vllm")
    names: dict[str, EngineName] = {name: name for name in get_args(EngineName)}
    return LocalStack(
        options.home.root,
        engine=names[engine],
        model=options.model or configured_model(settings, options.home),
        port=options.port,
        workers=options.workers,
        only=ALL_ROLES,
        on_change=view.changed,
        on_progress=view.progress,
    )


def configured_model(settings: Settings, home: Home) -> str:
    """Return the model of the settings, unless it is what `env` exported: a name for clients."""
    model = settings.model
    if model == state.read(home.state_file).model_name and not Path(model).exists():
        return ""
    return model


@contextlib.contextmanager
def _stop_signals(stack: LocalStack) -> Iterator[threading.Event]:
    """Yield an event that the first signal sets; a second one makes the end come at once."""
    stop = threading.Event()
    starting = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            stack.hurry()
        stop.set()
        if not stack.is_ready and not starting.is_set():
            starting.set()
            raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _notifications(home: Home) -> Iterator[tuple[socket.socket, str]]:
    address = str(home.socket_dir() / f"up-{os.getpid()}.notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        try:
            yield receiver, address
        finally:
            Path(address).unlink(missing_ok=True)


def _wait_ready(
    process: subprocess.Popen[bytes], receiver: socket.socket, home: Home, view: StackView
) -> None:
    """Show what the supervisor says until it is ready or has ended."""
    while process.poll() is None:
        readable, _, _ = select.select([receiver], [], [], _LOOK_SECONDS)
        if not readable:
            continue
        message = receiver.recv(65_536).decode(errors="replace")
        fields = dict(line.split("=", 1) for line in message.splitlines() if "=" in line)
        if "STATUS" in fields:
            view.progress(fields["STATUS"])
        found = state.read(home.state_file)
        if found.pid == process.pid:
            view.changed(found)
        if fields.get("READY") == "1":
            return
