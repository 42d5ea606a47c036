"""Settings of a home, or a clear word about which of them is wrong and where it was set."""

from __future__ import annotations

import os
import tomllib
from typing import Any

from pydantic import ValidationError

from vllm_batch.errors import StackError
from vllm_batch.local.home import Home
from vllm_batch.settings import Settings


def validated_settings(home: Home, /, **values: Any) -> Settings:
    """Return the settings of ``home`` with ``values`` above them.

    Raises StackError with one line per wrong value.
    """
    try:
        return Settings(**{"home": home.root, **values})
    except tomllib.TOMLDecodeError as error:
        raise StackError(f"{home.settings_file} is not valid TOML: {error}") from error
    except ValidationError as error:
        wrong = [
            f"{name}: {found['msg']} ({_source(name, home, values)})"
            for found in error.errors(include_url=False, include_input=False)
            for name in [".".join(str(part) for part in found["loc"]) or "settings"]
        ]
        raise StackError("a setting is wrong: " + "; ".join(wrong)) from error


def _source(name: str, home: Home, values: dict[str, Any]) -> str:
    if name in values:
        return "given on the command line"
    variable = f"VLLM_BATCH_{name.upper()}"
    return variable if os.environ.get(variable) else str(home.settings_file)
