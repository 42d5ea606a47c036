"""The launcher at the root: first use, repair, and what it says when something is missing.

Python and pip are stand-ins (small shell scripts) so that nothing is downloaded; the launcher is
the real one.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "cat", "cksum", "dirname", "flock", "mkdir", "readlink", "rm", "touch", "cp")

PYTHON = """#!/bin/sh
# A stand-in: makes "environments" that hold a copy of itself and logs what it is asked to do.
echo "$@" >>"{log}"
case "$*" in
    *"import venv, ensurepip"*) exit {ensurepip} ;;
    "-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    *"pip install"*) echo "pip was here"; exit $(cat "{pip}") ;;
    "-m vllm_batch.cli"*) shift 2; for argument; do echo "<$argument>"; done ;;
esac
"""


class Checkout:
    """A copy of the launcher in a folder with a space, and a PATH with what it needs."""

    def __init__(self, base: Path, *, ensurepip: int = 0) -> None:
        self.root = base / "my checkout"
        self.tools = base / "bin"
        self.log = base / "python.log"
        self.pip = base / "pip-exit-code"
        self.root.mkdir()
        self.tools.mkdir()
        self.pip.write_text("0")
        shutil.copy(ROOT / "vllm-batch", self.root)
        (self.root / "pyproject.toml").write_text("one")
        for tool in TOOLS:
            (self.tools / tool).symlink_to(str(shutil.which(tool)))
        python = self.tools / "python3.11"
        python.write_text(PYTHON.format(log=self.log, pip=self.pip, ensurepip=ensurepip))
        python.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            (self.root / "vllm-batch", *arguments),
            env={"PATH": str(self.tools)},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def installs(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "pip install" in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_run_installs_and_the_second_does_not(checkout: Checkout) -> None:
    first = checkout.run("batch", "show", "two words", "")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "<batch>\n<show>\n<two words>\n<>\n"
    assert "installing into" in first.stderr
    assert [line.split()[-1] for line in checkout.installs] == [".[local]"]
    second = checkout.run("status")
    assert (second.stdout, second.stderr, checkout.installs) == ("<status>\n", "", [])


def test_the_test_command_installs_what_tests_need_once(checkout: Checkout) -> None:
    checkout.run("status")
    checkout.run("test")
    assert [line.split()[-1] for line in checkout.installs] == [".[dev]"]
    for command in ("test", "status"):
        checkout.run(command)
        assert checkout.installs == []


def test_a_changed_pyproject_installs_again(checkout: Checkout) -> None:
    checkout.run("status")
    (checkout.root / "pyproject.toml").write_text("two")
    checkout.run("status")
    assert len(checkout.installs) == 1


def test_a_moved_checkout_installs_again(checkout: Checkout) -> None:
    checkout.run("status")
    checkout.root = checkout.root.rename(checkout.root.with_name("moved here"))
    checkout.run("status")
    assert len(checkout.installs) == 1


def test_a_failed_installation_is_shown_and_tried_again(checkout: Checkout) -> None:
    checkout.pip.write_text("1")
    failed = checkout.run("status")
    assert failed.returncode == 1
    assert "pip was here" in failed.stderr
    assert "the next run tries again" in failed.stderr
    checkout.pip.write_text("0")
    assert checkout.run("status").stdout == "<status>\n"


def test_a_half_made_environment_is_repaired(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    (checkout.root / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (checkout.root / ".venv" / "bin" / "python").chmod(0o755)
    assert checkout.run("status").stdout == "<status>\n"


def test_it_runs_through_a_link_from_elsewhere(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkout.root / "vllm-batch")
    done = subprocess.run(
        (tmp_path / "link", "status"), env={"PATH": str(checkout.tools)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "<status>\n"


def test_no_python_is_a_clear_message(checkout: Checkout) -> None:
    (checkout.tools / "python3.11").unlink()
    done = checkout.run("status")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer and found none" in done.stderr


def test_debians_missing_package_is_named(tmp_path: Path) -> None:
    done = Checkout(tmp_path, ensurepip=1).run("status")
    assert done.returncode == 1
    assert "apt install python" in done.stderr
    assert "-venv" in done.stderr
