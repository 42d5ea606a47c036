"""``vllm-batch nats``: what a NATS server of your own has to know of us."""

from __future__ import annotations

import typer

app = typer.Typer(help="A NATS server of your own: its users.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """A NATS server of your own: its users."""


@app.command()
def users() -> None:
    """Print a user for each service with no more permissions than it needs.

    Put it into the configuration of nats-server with a password (plain, or its bcrypt hash) for
    each @name@; users for tools come from `vllm-batch events grants --config`.
    """
    from vllm_batch.messaging.nats_users import template

    print(template(), end="")
