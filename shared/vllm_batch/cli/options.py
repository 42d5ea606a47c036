"""Options that several commands share."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vllm_batch.local.home import Home

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="VLLM_BATCH_HOME",
        help="Folder of the stack's data.",
        show_default="~/.local/share/vllm-batch",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def home_of(path: Path | None) -> Home:
    """Return the home that an option names, or the default one."""
    if path is None:
        from vllm_batch.settings import default_home

        path = default_home()
    return Home.at(path)


def option_for(home: Home) -> str:
    """Return the option by which a command means ``home``; nothing for the usual one."""
    from vllm_batch.settings import default_home

    usual = home == Home.at(default_home())
    return "" if usual else f" --home {shlex.quote(str(home.root))}"
