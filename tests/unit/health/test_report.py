"""What a health report says, how it is shown, and that the commands it names are there."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
import typer.main
import yaml

from batch_gateway.api.gate import _password_as_key
from batch_gateway.api.health_page import page
from vllm_batch.cli.application import build
from vllm_batch.health.examine import log_away
from vllm_batch.health.report import Check, check_of, counted, critical, report_of, warning
from vllm_batch.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROOT = Path(__file__).parents[3]
COMMAND = re.compile(r"`vllm-batch ([a-z][a-z -]*[a-z])(?: [^`]*)?`")


def test_the_worst_of_all_checks_is_how_it_is() -> None:
    fine = check_of("a", "fine")
    poor = check_of("b", "poor", [warning("w", "do w")])
    bad = check_of("c", "bad", [warning("w2", "do"), critical("c", "do c")])
    dark = Check(name="d", status="unknown", summary="no answer")
    assert (fine.status, poor.status, bad.status) == ("ok", "warning", "critical")
    assert report_of(NOW, [fine]).status == "ok"
    assert report_of(NOW, [fine, poor]).status == "degraded"
    assert report_of(NOW, [fine, dark]).status == "degraded"
    assert report_of(NOW, [dark, poor, bad]).status == "failing"
    assert [one.what for one in report_of(NOW, [fine, poor, bad]).problems] == ["c", "w", "w2"]
    assert (counted(1, "batch", "batches"), counted(2, "batch", "batches")) == (
        "1 batch", "2 batches",
    )  # fmt: skip


def test_the_page_says_it_all_and_nothing_of_it_is_markup() -> None:
    evil = "<script>alert('x')</script> & \"quotes\""
    problems = [critical(evil, f"run `vllm-batch worker logs --worker {evil}` now")]
    text = page(report_of(NOW, [check_of("workers", evil, problems), check_of("b", "fine")]))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "<code>vllm-batch worker logs --worker &lt;script&gt;" in text
    assert "Something stands still." in text
    assert "2026-01-02 03:04:05 UTC" in text


def test_the_address_of_the_log_is_told_without_its_password(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, nats_url="nats://api:s3cret@nats:4222,nats://x:y@n2:4222")
    (problem,) = log_away(settings, TimeoutError()).problems
    assert "nats:4222, n2:4222" in problem.action
    assert "s3cret" not in problem.action


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("Bearer sk-1", "Bearer sk-1"),
        ("Basic YW55Om9uZTpzay0x", "Bearer one:sk-1"),
        ("basic OnNrLTE=", "Bearer sk-1"),
        ("Basic !!!", None),
        ("Basic gICA", None),
        ("Basic", "Bearer "),
        (None, None),
    ],
)
def test_a_password_stands_for_a_key(header: str | None, wanted: str | None) -> None:
    assert _password_as_key(header) == wanted


def texts() -> list[str]:
    code = [*ROOT.glob("shared/vllm_batch/health/*.py")]
    found = ["".join(re.findall(r'"([^"\n]*)"', path.read_text())) for path in code]
    rules = yaml.safe_load((ROOT / "deploy/observability/rules/vllm-batch.yml").read_text())
    found += [rule["annotations"]["action"] for group in rules["groups"] for rule in group["rules"]]
    return [*found, (ROOT / "shared/docs/observability.md").read_text()]


def test_commands_that_are_named_exist() -> None:
    named = {words for text in texts() for words in COMMAND.findall(text)}
    assert len(named) > 10
    top = typer.main.get_command(build())
    for words in named:
        command: click.Command = top
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            found = command.get_command(click.Context(command), word)
            assert found is not None, f"`vllm-batch {words}`"
            command = found
