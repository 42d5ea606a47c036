"""What a model's name and engine arguments may be. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from vllm_batch.errors import InvalidInput

NAME_CHARACTERS_MAX = 256
SOURCE_CHARACTERS_MAX = 1024
ENGINE_ARGS_MAX = 100

OURS = frozenset(
    {"model", "served-model-name", "uds", "host", "port", "api-key", "root-path", "config",
     "ssl-keyfile", "ssl-certfile", "scheduling-policy"}
)  # fmt: skip
"""Arguments of vLLM's server that a worker gives itself, or whose change would lock it out."""
_LONG = {
    "-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size",
    "-q": "quantization",
}  # fmt: skip
"""Short options of vLLM 0.32 that count in an estimate."""
_NEGATIVE = re.compile(r"-\d+(\.\d+)?")
_WHY = {"scheduling-policy": ": by priority, so that online requests go before batch requests"}


def check_name(name: str, *, param: str) -> None:
    """Refuse what cannot be asked for by name.

    Raises:
        InvalidInput: empty, too long, or with characters that are not printed.
    """
    if not 0 < len(name) <= NAME_CHARACTERS_MAX:
        raise InvalidInput(f"a model's name has 1 to {NAME_CHARACTERS_MAX} characters", param=param)
    if not name.isprintable() or name != name.strip():
        raise InvalidInput(
            f"{name!r} has control characters, or spaces at an end: choose a name that can be "
            "typed",
            param=param,
        )


def check_source(source: str) -> None:
    """Refuse what can be no folder, hub id or blob.

    Raises:
        InvalidInput: empty, too long, or with characters that are not printed.
    """
    if not 0 < len(source) <= SOURCE_CHARACTERS_MAX or not source.isprintable():
        raise InvalidInput(
            f"a source is a folder or a hub id such as org/model, of up to {SOURCE_CHARACTERS_MAX} "
            "printable characters",
            param="source",
        )


def check_engine_args(arguments: list[str]) -> None:
    """Refuse arguments that would take the server away from its worker.

    Raises:
        InvalidInput: one of `OURS`, or too many.
    """
    if len(arguments) > ENGINE_ARGS_MAX:
        raise InvalidInput(f"more than {ENGINE_ARGS_MAX} engine arguments", param="engine_args")
    if arguments and not arguments[0].startswith("-"):
        raise InvalidInput(
            f"engine arguments start with an option such as --max-model-len, not {arguments[0]!r}",
            param="engine_args",
        )
    for option in options_of(arguments):
        if option in OURS:
            raise InvalidInput(
                f"--{option} is set by the worker itself{_WHY.get(option, '')}", param="engine_args"
            )


def arguments_in(text: str) -> list[str]:
    """Return engine arguments that were written as on a command line.

    Raises:
        InvalidInput: a quotation mark is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidInput(
            f"the engine arguments cannot be read: {error}", param="engine_args"
        ) from error


def options_of(arguments: Iterable[str]) -> dict[str, str]:
    """Return the options that arguments name, by their long names without dashes, and their values
    (may be empty)."""
    found: dict[str, str] = {}
    option = ""
    for argument in arguments:
        if argument.startswith("-") and not _NEGATIVE.fullmatch(argument):
            option, _, value = argument.partition("=")
            option = _LONG.get(option) or option.lstrip("-").replace("_", "-")
            found[option] = value
        elif option:
            found[option] = argument
    return found
