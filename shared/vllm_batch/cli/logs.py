"""``vllm-batch logs``: what the services print."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption, home_of
from vllm_batch.errors import NotFound

_LOOK_SECONDS = 0.25


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(rich_help_panel="Stack")
    def logs(
        service: Annotated[
            str, typer.Argument(help="nats, postgres, api, orchestrator, worker-1, supervisor …")
        ] = "",
        home: HomeOption = None,
        tail: Annotated[int, typer.Option("--tail", "-n", help="Last lines to show.", min=0)] = 100,
        follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Print the last lines of a service's log; without a name, list the logs."""
        folder = home_of(home).logs
        names = sorted(path.stem for path in folder.glob("*.log"))
        if not service:
            output.print_json(names) if as_json else print("\n".join(names))
            return
        if service not in names:
            raise NotFound(
                f"no log of {service!r} in {folder}; there are: {', '.join(names) or 'none'}"
            )
        path = folder / f"{service}.log"
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = deque(file, maxlen=tail)
            position = file.tell()
        for line in lines:
            _print(line, as_json)
        if follow:
            for line in follow_file(path, position):
                _print(line, as_json)


def follow_file(path: Path, position: int) -> Generator[str, None, None]:
    """Yield lines of ``path`` from ``position`` on as it grows, across rotations, for ever."""
    partial = ""
    while True:
        with path.open(encoding="utf-8", errors="replace") as file:
            file.seek(position)
            while True:
                if line := file.readline():
                    partial += line
                    if partial.endswith("\n"):
                        yield partial
                        partial = ""
                elif _was_rotated(path, file.fileno()):
                    break
                else:
                    time.sleep(_LOOK_SECONDS)
        position = 0


def _was_rotated(path: Path, descriptor: int) -> bool:
    import os

    try:
        return path.stat().st_ino != os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False  # the new one is not there yet


def _print(line: str, as_json: bool) -> None:
    text = line.rstrip("\n")
    print(json.dumps({"line": text}, ensure_ascii=False) if as_json else text, flush=True)
