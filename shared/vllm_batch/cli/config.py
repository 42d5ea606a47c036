"""``vllm-batch config``: every setting, its value and where that came from."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption, home_of
from vllm_batch.local.validated import validated_settings
from vllm_batch.settings import Settings, secrets_dir

_CREDENTIALS = re.compile(r"(?<=://)[^@/\s,]+(?=@)")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(rich_help_panel="Stack")
    def config(home: HomeOption = None, as_json: JsonOption = False) -> None:
        """Print every setting with its value and source; secrets are hidden."""
        place = home_of(home)
        rows = describe(validated_settings(place), place.settings_file)
        if as_json:
            output.print_json(rows)
            return
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("setting", "value", "source", ""):
            table.add_column(heading, header_style="dim")
        for row in rows:
            colour = "dim" if row["source"] == "default" else "green"
            table.add_row(
                row["name"], escape(str(row["value"])), f"[{colour}]{row['source']}[/]",
                escape(row["description"]),
            )  # fmt: skip
        output.console().print(table)


def describe(settings: Settings, settings_file: Path) -> list[dict[str, Any]]:
    """Return name, value (redacted where secret), source and description of every setting."""
    in_file = tomllib.loads(settings_file.read_text("utf-8")) if settings_file.exists() else {}
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if os.environ.get(f"VLLM_BATCH_{name.upper()}"):
            source = f"environment VLLM_BATCH_{name.upper()}"
        elif (secret := secrets_dir() / f"vllm_batch_{name}").is_file():
            source = f"secret {secret}"
        elif name in in_file:
            source = f"file {settings_file}"
        else:
            source = "default"
        if isinstance(value, SecretStr):
            value = str(value)  # asterisks, or nothing when it is empty
        elif isinstance(value, str | Path):
            value = _CREDENTIALS.sub("**********", str(value))
        description = field.description or ""
        rows.append({"name": name, "value": value, "source": source, "description": description})
    return rows
