"""``vllm-batch test``: installs what the tests need and runs them all, the quick ones first."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import typer

import vllm_batch
from vllm_batch.cli import output
from vllm_batch.errors import BatchError

_QUICK = ("architecture", "unit")
_WAITING = ("contracts", "compat", "integration", "ui", "faults")
"""These start servers and mostly wait for them: more files at a time than there are cores."""
_ALONE = ("e2e", "compose")
"""These keep all cores busy."""
ORDER = (*_QUICK, *_WAITING, *_ALONE)
_FILES_AT_A_TIME_MAX = 8
_NONE_COLLECTED = 5
_NOT_IN_A_RUN = frozenset({"benchmarks", "screenshots"})
_CHECKS = (
    ("ruff check", ("-m", "ruff", "check", "--quiet", ".")),
    ("ruff format", ("-m", "ruff", "format", "--check", "--quiet", ".")),
    ("mypy", ("-m", "mypy", "--no-error-summary")),
    ("import-linter", ("-c", "from importlinter.cli import lint_imports_command as c; c()")),
)

# What some tests run beside us; without it they skip and say so.
_PROGRAMS = {
    "cc": ("gcc", "libc6-dev"),
    "systemd-analyze": ("systemd",),
    "dockerd": ("docker.io", "iptables"),
    "docker": ("docker.io",),
    "debootstrap": ("debootstrap",),
    "chromium": ("chromium",),
}
_APT_SECONDS = 600.0


class NoCheckout(BatchError):
    """The tests are not part of an installed wheel."""

    code = "no_checkout"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        rich_help_panel="Stack",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def test(
        context: typer.Context,
        fast: Annotated[
            bool, typer.Option("--fast", help="Without the real engine and without containers.")
        ] = False,
    ) -> None:
        """Run lint, type checks and all tests; other options and paths go to pytest.

        With paths only those tests run.
        """
        root = checkout()
        paths = paths_in(context.args, root)
        failed = [] if paths else run_checks(root)
        if not paths:
            install_programs()
        options = [argument for argument in context.args if argument not in paths]
        runs = [paths] if paths else stages(folders(root, fast=fast))

        def prepare() -> None:
            with contextlib.nullcontext() if paths else _label_studio(root):
                if not fast and needs_engine(paths):
                    _prepare_engine()

        code, summary = run_pytest(root, runs, options, prepare)
        console = output.console()
        for name in failed:
            console.print(f"[bold red]{name} found something (see above)[/]")
        console.print(summary)
        raise typer.Exit(code or (output.ExitCode.FAILED if failed else output.ExitCode.DONE))


def checkout() -> Path:
    """Return the root of the checkout this package runs from. Raises NoCheckout."""
    root = Path(vllm_batch.__file__).resolve().parents[2]
    if not (root / "tests").is_dir() or not (root / "pyproject.toml").exists():
        raise NoCheckout(
            "the tests are in the source tree only: clone the repository, run ./vllm-batch test"
        )
    return root


def paths_in(arguments: list[str], root: Path) -> list[str]:
    """Return the arguments that are paths; the others are pytest's, or values of its options.

    Raises:
        typer.BadParameter: one looks like a path, and there is nothing.
    """
    found = []
    for argument in arguments:
        path = argument.partition("::")[0]
        if argument.startswith("-"):
            continue
        if (root / path).exists():
            found.append(argument)
        elif path.startswith("tests/") or path.endswith(".py") or path != argument:
            raise typer.BadParameter(f"there is no {path} in {root}")
    return found


def folders(root: Path, *, fast: bool) -> list[str]:
    """Return the folders of tests in running order: a folder nobody listed comes last."""
    there = {p.name for p in (root / "tests").iterdir() if p.is_dir() and any(p.rglob("test_*.py"))}
    there -= _NOT_IN_A_RUN | (set(_ALONE) if fast else set())
    ordered = [name for name in ORDER if name in there] + sorted(there - set(ORDER))
    return [f"tests/{name}" for name in ordered]


def stages(folders: list[str]) -> list[list[str]]:
    """Return the arguments of one run of pytest after the other: files run side by side where they
    leave each other time."""
    cores = os.cpu_count() or 1
    found = []
    for names, at_a_time in ((_QUICK, cores), (_WAITING, 2 * cores)):
        if chosen := [folder for folder in folders if folder.removeprefix("tests/") in names]:
            workers = min(at_a_time, _FILES_AT_A_TIME_MAX)
            found.append(["-n", str(workers), "--dist", "loadfile", *chosen])
            folders = [folder for folder in folders if folder not in chosen]
    return [*found, folders] if folders else found


def needs_engine(paths: list[str]) -> bool:
    """Tell whether these tests (none: all of them) may use the real engine."""
    return not paths or any("e2e" in path or path.rstrip("/") == "tests" for path in paths)


def missing_packages() -> list[str]:
    """Return the Debian packages of programs that tests use and this machine lacks."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    return sorted({package for name in lacking for package in _PROGRAMS[name]})


def install_programs() -> None:
    """Install what is missing where that is ours to do: as root, on Debian."""
    packages = missing_packages()
    if not packages or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    console = output.console()
    console.print(f"installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ("update", "-q"),
        ("install", "-q", "-y", "--no-install-recommends", *packages),
    ):
        command = ("apt-get", *arguments)
        try:
            subprocess.run(
                command, env=environment, capture_output=True, check=True, timeout=_APT_SECONDS
            )
        except (subprocess.SubprocessError, OSError) as error:
            console.print(f"[yellow]not installed, some tests will skip: {error}[/]")
            return


def run_checks(root: Path) -> list[str]:
    """Run the static checks; return the names of those that found something."""
    console = output.console()
    failed = []
    for name, arguments in _CHECKS:
        done = subprocess.run((sys.executable, *arguments), cwd=root, check=False)
        console.print(f"{name}: {'ok' if done.returncode == 0 else '[bold red]failed[/]'}")
        if done.returncode != 0:
            failed.append(name)
    return failed


def run_pytest(
    root: Path, runs: list[list[str]], options: list[str], prepare: Callable[[], None]
) -> tuple[int, str]:
    """Run pytest in processes of their own, one after the other; return the first exit code that
    tells of a failure, and one line of counts.

    ``prepare`` gets ready what takes minutes, after the first of several runs: a break in the quick
    tests has shown by then.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-batch-test-") as folder:
        reports, codes = [], []
        for number, arguments in enumerate(runs):
            if number == min(1, len(runs) - 1):
                prepare()
            reports.append(Path(folder) / f"{number}.xml")
            report = f"--junitxml={reports[-1]}"
            command = (sys.executable, "-m", "pytest", report, *arguments, *options)
            codes.append(subprocess.run(command, cwd=root, check=False).returncode)
            if codes[-1] not in {0, _NONE_COLLECTED} and {"-x", "--exitfirst"} & set(options):
                break
        if any(code != _NONE_COLLECTED for code in codes):  # -k chose none of some folders
            codes = [code for code in codes if code != _NONE_COLLECTED]
        return next((code for code in codes if code != 0), 0), summarise(*reports)


def summarise(*reports: Path) -> str:
    """Return ``N passed, N failed, N skipped`` of JUnit reports."""
    if missing := sum(not report.exists() for report in reports):
        return f"pytest did not end properly, {missing} times of {len(reports)}"
    suites = [
        suite
        for report in reports
        for suite in ElementTree.parse(report).getroot().iter("testsuite")  # noqa: S314  we made it
    ]

    def total(name: str) -> int:
        return sum(int(suite.get(name, "0")) for suite in suites)

    failed, skipped = total("failures") + total("errors"), total("skipped")
    return f"{total('tests') - failed - skipped} passed, {failed} failed, {skipped} skipped"


@contextlib.contextmanager
def _label_studio(root: Path) -> Iterator[None]:
    """Install Label Studio and migrate its database meanwhile, so that no test waits for it."""
    output.console().print("preparing Label Studio for its tests (once, two minutes)")
    code = "from tests.real_label_studio import ensure_template as e; e()"
    command = (sys.executable, "-c", code)
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL) as preparing:
        yield
    if preparing.returncode != 0:  # the tests that need it try again, and say what is wrong
        output.warn("Label Studio could not be prepared")


def _prepare_engine() -> None:
    """Build engine and model now, with progress, so that no test waits for it."""
    from vllm_batch.cli.stack_view import StackView
    from vllm_batch.local import engine_env, model

    view = StackView()
    variant = engine_env.detect_variant(os.environ.get("VLLM_BATCH_ENGINE_VARIANT", "auto"))
    with view.live():
        python = engine_env.ensure(variant, on_progress=view.progress)
        model.ensure(python, on_progress=view.progress)
