"""``vllm-batch status`` and ``env``: what runs, and how to talk to it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption, home_of
from vllm_batch.local import state
from vllm_batch.local.home import Home
from vllm_batch.local.leftovers import is_same
from vllm_batch.local.state import StackState


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Stack")(status)
    app.command(rich_help_panel="Stack")(env)


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show every service with its state, pid and port. Exit code 3 when nothing runs."""
    place = home_of(home)
    found = state.read(place.state_file)
    if not found.api_url:
        _refuse_elsewhere(home)
    if as_json:
        output.print_json(as_data(place, found))
    if not found.is_alive:
        if not as_json:
            raise output.NotRunning(
                f"no stack runs on {place.root}; start one with `vllm-batch up --detach`"
            )
        raise typer.Exit(output.ExitCode.NOT_RUNNING)
    if not as_json:
        from vllm_batch.cli.stack_view import table

        console = output.console()
        console.print(table(found))
        console.print(f"API [bold]{found.api_url}[/]   model {found.model_name} ({found.engine})")
        console.print(f"home {place.root}", style="dim")


def env(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print what the official client needs: eval "$(vllm-batch env)"."""
    place = home_of(home)
    found = state.read(place.state_file)
    if not found.api_url or not place.api_key_file.exists():
        _refuse_elsewhere(home)
        raise output.NotRunning(
            f"no stack has run on {place.root}; start one with `vllm-batch up --detach`"
        )
    if not found.is_alive:
        output.warn("the stack is stopped; start it with `vllm-batch up --detach`")
    variables = {
        "OPENAI_BASE_URL": found.api_url,
        "OPENAI_API_KEY": place.api_key_file.read_text(encoding="utf-8").strip(),
        "VLLM_BATCH_MODEL": found.model_name,
    }
    if as_json:
        output.print_json(variables)
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def _refuse_elsewhere(home: Path | None) -> None:
    """Raise NotRunning that says where to look, if a deployment elsewhere is meant."""
    from vllm_batch.cli.service_settings import is_elsewhere

    if is_elsewhere(home):
        raise output.NotRunning(
            "this command is about the embedded stack, and none has run here. `vllm-batch health` "
            "asks the servers of the settings what is wrong; containers are shown by "
            "`docker compose ps`, and their address and key are in `.env` and `secrets/api_key`"
        )


def as_data(place: Home, found: StackState) -> dict[str, Any]:
    """Return the state as `status --json` prints it; pids of processes that are gone are null."""
    alive = found.is_alive
    return {
        "home": str(place.root),
        "state": found.state if alive else "stopped",
        "supervisor": {"pid": found.pid if alive else None},
        "api_url": found.api_url or None,
        "engine": found.engine or None,
        "model": found.model_name or None,
        "services": [
            {
                "name": service.name,
                "state": service.state if alive else "stopped",
                "pid": service.pid
                if service.pid and is_same(service.pid, service.started)
                else None,
                "port": service.port,
                "metrics_port": service.metrics_port,
                "restarts": service.restarts,
                "since": service.since,
                "status": service.status,
            }
            for service in found.services
        ],
    }
