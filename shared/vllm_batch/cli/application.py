"""Puts the commands of this package's modules together."""

from __future__ import annotations

import importlib
import pkgutil

import typer

from vllm_batch import cli

_EPILOG = (
    "Exit codes: 0 done · 1 failed · 2 wrong usage · 3 the stack is not running · 4 not found ·"
    " 5 the batch ended without success · 130 interrupted.   "
    "--debug (or VLLM_BATCH_DEBUG=1) shows tracebacks; --json on every command is for scripts."
)
_NO_COMMANDS = frozenset({"__main__", "application", "launch", "options", "output", "stack_view"})


def build() -> typer.Typer:
    """Return the whole command line."""
    app = typer.Typer(
        name="vllm-batch",
        help="Self-hosted, OpenAI-compatible batch inference on vLLM.",
        epilog=_EPILOG,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for module_info in pkgutil.iter_modules(cli.__path__):
        if module_info.name in _NO_COMMANDS:
            continue
        module = importlib.import_module(f"{cli.__name__}.{module_info.name}")
        if group := getattr(module, "app", None):
            app.add_typer(group, name=module_info.name.rstrip("_").replace("_", "-"))
        elif register := getattr(module, "register", None):
            register(app)
    return app
