"""The shape of the code, held as a ratchet: sizes, rooms, and who may do what."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted([*ROOT.glob("shared/vllm_batch/**/*.py"), *ROOT.glob("services/*/*/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
NAMELESS_ROOMS = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE + TESTS, ids=name)
def test_a_file_fits_its_limit(path: Path) -> None:
    limit = TEST_FILE_LINES_MAX if path in TESTS else FILE_LINES_MAX
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", CODE, ids=name)
def test_functions_fit_a_screen_and_modules_say_what_they_own(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), "a module says what it owns, reads and writes"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", CODE, ids=name)
def test_rooms_have_names(path: Path) -> None:
    parts = {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}
    assert not parts & NAMELESS_ROOMS


def offenders(pattern: str, allowed: str) -> list[str]:
    wanted = re.compile(pattern)
    return [
        f"{name(path)}: {line.strip()}"
        for path in CODE
        if not name(path).startswith(allowed)
        for line in path.read_text().splitlines()
        if wanted.search(line)
    ]


def test_only_the_consumer_acks() -> None:
    acks = r"\.(ack|nak|term|ack_sync|in_progress)\("
    assert offenders(acks, "shared/vllm_batch/messaging/") == []


def test_only_the_subjects_module_builds_subjects() -> None:
    subject = r"""f?["'](job|chunk|file|upload|apikey|worker|work)\.[^"']*(\*|>|\{)"""
    assert offenders(subject, "shared/vllm_batch/messaging/") == []


def test_no_wait_may_swallow_a_cancellation() -> None:
    """As `asyncio.wait_for` does before Python 3.12; see `vllm_batch.tasks`."""
    assert offenders(r"asyncio\.wait_for\(", "-") == []


def test_only_the_engine_environment_knows_vllm() -> None:
    assert offenders(r"^\s*(import|from) vllm\b", "-") == []


def test_the_repository_has_no_path_of_one_machine() -> None:
    texts = [*CODE, *ROOT.glob("*.md"), *ROOT.glob("shared/docs/**/*.md"), ROOT / "pyproject.toml"]
    for path in texts:
        assert not re.search(r"(?<![\w.])/(work|root|home/\w+)/", path.read_text()), path
