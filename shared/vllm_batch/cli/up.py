"""``vllm-batch up`` and ``down``: the embedded stack in the foreground or detached."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption, home_of, option_for


class Engine(StrEnum):
    """Engines a worker can run."""

    VLLM = "vllm"
    OPENAI = "openai"
    SIMULATED = "simulated"


EngineOption = Annotated[
    Engine | None, typer.Option("--engine", help="What answers the requests.", show_default="vllm")
]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--port", help="Port of the API; 0 takes any.", show_default="4080 if free", min=0
    ),
]
WorkersOption = Annotated[int, typer.Option("--workers", help="GPU workers.", min=0, max=64)]
ModelOption = Annotated[
    str, typer.Option("--model", help="Hugging Face id or folder.", show_default="SmolLM2-135M")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Stack")(up)
    app.command(rich_help_panel="Stack")(down)


def up(
    engine: EngineOption = None,
    home: HomeOption = None,
    port: PortOption = None,
    workers: WorkersOption = 1,
    model: ModelOption = "",
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready.")
    ] = False,
    as_json: JsonOption = False,
    supervise: Annotated[bool, typer.Option("--supervise", hidden=True)] = False,
) -> None:
    """Start NATS, Postgres, the gateway and workers, and keep them running.

    In the foreground Ctrl-C stops everything; with --detach `vllm-batch down` does.
    """
    from vllm_batch.cli.launch import StackOptions, describe_api, run_here, start_detached

    options = StackOptions(
        home=home_of(home),
        engine=engine.value if engine else None,
        port=port,
        workers=workers,
        model=model,
    )
    if detach:
        state = start_detached(options)
        if as_json:
            from vllm_batch.cli.status import as_data

            output.print_json(as_data(options.home, state))
        else:
            console = output.console()
            console.print(f"{describe_api(state.api_url)}   model {state.model_name}", markup=False)
            command = f"{output.program()} env{option_for(options.home)}"
            console.print(f'for the official client: eval "$({command})"', markup=False)
        return
    run_here(options, quiet=supervise)


def down(
    home: HomeOption = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for running requests.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop the stack of this home. Batches go on where they stopped at the next `up`."""
    from vllm_batch.cli.launch import stop_stack

    stopped = stop_stack(home_of(home), now=now)
    if as_json:
        output.print_json({"home": str(home_of(home).root), "stopped": stopped})
    elif stopped:
        output.console(stderr=True).print("stopped")
    else:
        output.console(stderr=True).print("nothing was running")
