"""Runs an engine so that nothing of it outlives the worker. A script: standard library only.

``guardian.py RECORD GRACE_SECONDS PROGRAM [ARGUMENT…]``

Stands between the worker and the engine's server, whose children (vLLM's EngineCore) hold the GPU
and stay when the server is killed. Everything below runs in the guardian's session, and orphans of
it come to the guardian. When the server ends, when the worker goes away (end of file on standard
input, however it died) or says so (SIGTERM: ask first, kill after GRACE_SECONDS), the guardian
kills what is left, waits until it is gone, and ends with the server's exit status. RECORD tells who
they are, for the case that the guardian itself is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
_PAUSE_SECONDS = 0.02
_TRACKER_SECONDS = 3.0
_SESSION, _START_TIME = 3, 19  # fields of /proc/<pid>/stat after the name: session, start time


def process_fields(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/<pid>/stat`` that follow the name; None when it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text.rpartition(")")[2].split()


def session_members(session: int) -> list[int]:
    """Return the pids of the live processes of ``session``; those that wait to be reaped are
    none."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = process_fields(int(entry.name))
            if fields and int(fields[_SESSION]) == session and fields[0] not in {"Z", "X"}:
                found.append(int(entry.name))
    return found


def start_time(pid: int) -> int | None:
    """Return when ``pid`` was started, in clock ticks since the boot; None when it is gone."""
    fields = process_fields(pid)
    return int(fields[_START_TIME]) if fields else None


def has_variable(pid: int, variable: str) -> bool:
    """Tell whether a process was started with ``NAME=value`` in its environment."""
    try:
        return variable.encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def boot_id() -> str:
    """Return what tells this run of the machine from every other one."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def end_processes(find: Callable[[], Iterable[int]]) -> list[int]:
    """SIGKILL what ``find`` finds until it finds nothing more; return the pids.

    Python's trackers of shared memory come last, after a moment in which they remove what their
    dead clients left in /dev/shm: hundreds of megabytes with vLLM.
    """
    patience = time.monotonic() + _TRACKER_SECONDS
    killed: set[int] = set()
    while found := set(find()):
        trackers = {pid for pid in found if _is_tracker(pid)}
        victims = found - trackers if time.monotonic() < patience else found
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= victims
        time.sleep(_PAUSE_SECONDS)
    return sorted(killed)


def _is_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def recorded_server(record: Path) -> int | None:
    """Return the pid of the server according to ``record``; None where it is not known (yet)."""
    try:
        return int(json.loads(record.read_text())["server"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kill_recorded(record: Path) -> list[int]:
    """Kill what an earlier guardian left behind according to ``record``; return the pids.

    A process belongs to it if it is in the recorded session and younger than the guardian was.
    """
    try:
        known = json.loads(record.read_text())
        session, started, boot = known["guardian"], known["started"], known["boot_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    killed: list[int] = []
    if boot == boot_id():
        killed = end_processes(
            lambda: [pid for pid in session_members(session) if (start_time(pid) or 0) >= started]
        )
    record.unlink(missing_ok=True)
    return killed


def _children() -> list[int]:
    own = os.getpid()
    text = (_PROC / str(own) / "task" / str(own) / "children").read_text()
    return [int(pid) for pid in text.split()]


def _bury(server: subprocess.Popen[bytes]) -> None:
    """Kill and reap all that is left below this process, whatever session it went to."""
    own = os.getpid()

    def left() -> set[int]:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == server.pid:
                    server.returncode = os.waitstatus_to_exitcode(status)
                if pid == 0:
                    break
        return ({*session_members(own), *_children()}) - {own}

    end_processes(left)


def _die_with_guardian() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _write_record(record: Path, server: int) -> None:
    own = os.getpid()
    known = {
        "guardian": own, "server": server, "started": start_time(own), "boot_id": boot_id(),
    }  # fmt: skip
    temporary = record.with_suffix(".new")
    temporary.write_text(json.dumps(known))
    temporary.replace(record)


def _watch(server: subprocess.Popen[bytes], grace_seconds: float, wake: int) -> None:
    """Return when the server has ended or has to be killed."""
    deadline: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while server.poll() is None:
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                return
            ready = {key.fd for key, _ in selector.select(timeout)}
            if 0 in ready and not os.read(0, 4096):
                return  # the worker is gone
            if wake in ready and signal.SIGTERM in os.read(wake, 4096) and deadline is None:
                deadline = time.monotonic() + grace_seconds
                server.terminate()


def main(arguments: list[str]) -> int:
    """Run the program to its end and return its exit status (128 + n when signal n ended it)."""
    record, grace_seconds, command = Path(arguments[0]), float(arguments[1]), arguments[2:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_guardian,  # noqa: PLW1509 - there are no threads here
        )
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        return 127
    _write_record(record, server.pid)
    _watch(server, grace_seconds, wake)
    _bury(server)
    record.unlink(missing_ok=True)
    code = server.returncode
    if code is None:
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
