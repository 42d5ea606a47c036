"""Becomes another program that cannot outlive the supervisor. Run as a script, on its own.

``exec_child.py PARENT_PID DEATH_SIGNAL UID GID PROGRAM [ARGUMENT…]``; UID and GID -1 keep the user.

The order matters: the kernel forgets the death signal when a process changes its user, and a parent
that died before the signal was set would never be noticed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def as_child(
    *command: str,
    uid: int = -1,
    gid: int = -1,
    death_signal: signal.Signals = signal.SIGKILL,
) -> tuple[str, ...]:
    """Return the command that runs ``command`` as a child that ends with the caller's thread."""
    wrapper = (sys.executable, "-I", "-S", __file__, str(os.getpid()))
    return (*wrapper, str(int(death_signal)), str(uid), str(gid), *command)


def main(arguments: list[str]) -> None:
    """Set the user and the death signal, then exec. Exits 127 when the program is not there."""
    parent, death_signal, uid, gid = (int(value) for value in arguments[:4])
    program = arguments[4:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"{program[0]}: the supervisor is gone")
    # This interpreter ignores these two; the program must not inherit that.
    for number in (signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)):
        if number is not None:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
