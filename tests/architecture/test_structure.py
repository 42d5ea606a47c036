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
OUR_VALUES = {"height_px", "STATE_COLOURS.get(name, 'idle')"}
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


def is_ours(node: ast.expr) -> bool:
    """Tell whether a value is written in the code, or chosen from what is."""
    if isinstance(node, ast.IfExp):
        return is_ours(node.body) and is_ours(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return all(is_ours(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return is_ours(node.value) or ast.unparse(node.value) in OUR_VALUES
    return isinstance(node, ast.Constant)


def foreign(source: str) -> list[str]:
    """Return the calls that give NiceGUI's parsers a value from elsewhere."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"props", "classes", "style"}
        and any(isinstance(part, ast.FormattedValue) and not is_ours(part)
                for value in (*node.args, *(one.value for one in node.keywords))
                for part in ast.walk(value))
    ]  # fmt: skip


@pytest.mark.parametrize("path", [path for path in CODE if "admin-ui" in name(path)], ids=name)
def test_no_foreign_text_is_parsed_as_props(path: Path) -> None:
    """A quote in a model's name would end the value and begin a prop that the browser runs:
    ``show.named`` sets it as it is."""
    assert foreign(path.read_text()) == []


def test_foreign_text_in_props_is_found() -> None:
    assert foreign("""element.props(f'aria-label="{name}"')""")
    assert foreign("""element.classes("a").style(f"color:{colour}")""")
    assert not foreign("""element.classes(f"state {'good' if well else 'bad'}")""")
    assert not foreign("""ui.label(f"{name}").classes("dim")""")
