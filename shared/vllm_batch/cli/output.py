"""What the user sees: text or JSON on stdout, one clear line per error on stderr, exit codes."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from vllm_batch.errors import BatchError, NotFound

if TYPE_CHECKING:
    from rich.console import Console


class ExitCode(IntEnum):
    """Exit codes, the same for every command; scripts may rely on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_FOUND = 4
    UNSUCCESSFUL = 5
    """The command worked; the batch it is about failed, expired or was cancelled."""
    INTERRUPTED = 130


class NotRunning(BatchError):
    """No stack runs on this home."""

    code = "stack_not_running"


def console(*, stderr: bool = False) -> Console:
    """Return a terminal that knows whether it is one."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=not sys.stdout.isatty())


def print_json(data: Any) -> None:
    """Print one JSON document."""
    json.dump(data, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def program() -> str:
    """Return how this shell calls us: the launcher's path, or the installed command."""
    return shlex.quote(os.environ.get("VLLM_BATCH_LAUNCHER") or "vllm-batch")


def as_called(text: str) -> str:
    """Return ``text`` with the commands in backticks as this shell has to call them."""
    return text.replace("`vllm-batch ", f"`{program()} ")


def who() -> str:
    """Return who is asking, for events: the user of the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def warn(text: str) -> None:
    """Say something on stderr that is not the result."""
    from rich.markup import escape

    console(stderr=True).print(f"[yellow]{escape(as_called(text))}[/]", soft_wrap=True)


def explain(error: BaseException) -> ExitCode:
    """Print an error as what happened and what to do; returns the exit code for it."""
    from rich.markup import escape

    text = str(error) or type(error).__name__
    if not isinstance(error, BatchError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    console(stderr=True).print(f"[bold red]error:[/] {escape(as_called(text))}", soft_wrap=True)
    if isinstance(error, NotRunning):
        return ExitCode.NOT_RUNNING
    if isinstance(error, NotFound):
        return ExitCode.NOT_FOUND
    return ExitCode.FAILED
