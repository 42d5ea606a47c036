"""How models look on a terminal: a table of all, or one with everything that is known of it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from vllm_batch.cli.listing import print_fields, print_rows

if TYPE_CHECKING:
    from vllm_batch.model_listing import ModelOnWorker, ModelStatus

_COLUMNS = ("model", "status", "workers", "aliases", "base", "price in/out", "source")


def show_all(models: list[ModelStatus]) -> None:
    """Print the table."""
    print_rows(
        _COLUMNS,
        (
            (
                model.name, model.status,
                ", ".join(one.worker for one in model.workers if one.status == "ready") or "-",
                ", ".join(model.aliases) or "-", model.base or "-", _prices(model) or "-",
                model.source or "a worker's own",
            )
            for model in models
        ),
    )  # fmt: skip


def show_one(model: ModelStatus) -> None:
    """Print one model; what nobody said is left out."""
    print_fields(
        {
            "name": model.name,
            "status": model.status,
            "source": model.source or "a worker's own configuration; nobody registered it",
            "base": model.base,
            "training run": model.training_run,
            "adapters": ", ".join(model.adapters) or None,
            "aliases": ", ".join(model.aliases) or None,
            "engine arguments": shlex.join(model.engine_args) or None,
            "price of a million tokens": _prices(model),
            "load requested": _requested(model),
            "key": model.model_key,
        }
    )
    for one in model.workers:
        print_fields({"worker": _on_worker(one)})


def _prices(model: ModelStatus) -> str | None:
    given = (model.input_price_per_million, model.output_price_per_million)
    if given == (None, None):
        return None
    return " / ".join("-" if price is None else f"{price:g}" for price in given)


def _requested(model: ModelStatus) -> str | None:
    if model.load_requested_on:
        return f"on {', '.join(model.load_requested_on)}"
    return "on any worker" if model.load_requested else None


def _on_worker(one: ModelOnWorker) -> str:
    return f"{one.worker}: {one.status}" + (f" ({one.reason})" if one.reason else "")
