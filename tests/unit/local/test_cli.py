"""Pieces of the command line that need no stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from vllm_batch.cli import config, demo, launch, logs, output, stack_view, status
from vllm_batch.cli import test as test_command
from vllm_batch.errors import NotFound, StackError
from vllm_batch.local import state
from vllm_batch.local.home import Home
from vllm_batch.local.state import ServiceRecord, StackState
from vllm_batch.settings import Settings


def test_config_names_every_setting_with_its_source_and_hides_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text("chunk_requests_max = 7\nengine_api_key = 'hush'\n")
    monkeypatch.setenv("VLLM_BATCH_LEASE_SECONDS", "3.5")
    rows = {
        row["name"]: row
        for row in config.describe(Settings(home=tmp_path), tmp_path / "settings.toml")
    }
    assert set(rows) == set(Settings.model_fields)
    assert rows["chunk_requests_max"]["value"] == 7
    assert rows["chunk_requests_max"]["source"] == f"file {tmp_path / 'settings.toml'}"
    assert rows["lease_seconds"]["value"] == 3.5
    assert rows["lease_seconds"]["source"] == "environment VLLM_BATCH_LEASE_SECONDS"
    assert rows["api_port"]["source"] == "default"
    assert "hush" not in json.dumps(rows, default=str)
    assert rows["engine_api_key"]["value"] == "**********"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StackError("port [red]4080[/] is taken"), output.ExitCode.FAILED),
        (output.NotRunning("no stack"), output.ExitCode.NOT_RUNNING),
        (NotFound("no batch"), output.ExitCode.NOT_FOUND),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: Exception, code: output.ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output.explain(error) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_hints_name_the_command_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_BATCH_LAUNCHER", "../my clone/vllm-batch")
    output.explain(output.NotRunning("start one with `vllm-batch up --detach`"))
    assert "start one with `'../my clone/vllm-batch' up --detach`" in capsys.readouterr().err


def test_a_bug_names_its_kind_and_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.explain(ValueError("odd")) == output.ExitCode.FAILED
    assert capsys.readouterr().err == "error: ValueError: odd (--debug shows where)\n"


def test_a_followed_log_survives_rotation(tmp_path: Path) -> None:
    path = tmp_path / "api.log"
    path.write_text("old\n")
    lines = logs.follow_file(path, path.stat().st_size)
    with path.open("a") as file:
        file.write("before\n")
    seen = [next(lines)]
    path.rename(tmp_path / "api.log.1")
    path.write_text("after\n")
    seen.append(next(lines))
    lines.close()
    assert seen == ["before\n", "after\n"]


def test_the_exported_model_name_is_not_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eval "$(vllm-batch env)"; vllm-batch up` in one shell must not load a model of that name."""
    home = Home.at(tmp_path)
    state.write(home.state_file, StackState(model_name="SmolLM2-135M-Instruct"))
    monkeypatch.setenv("VLLM_BATCH_MODEL", "SmolLM2-135M-Instruct")
    assert launch.configured_model(Settings(home=tmp_path), home) == ""
    monkeypatch.setenv("VLLM_BATCH_MODEL", "some/other-model")
    assert launch.configured_model(Settings(home=tmp_path), home) == "some/other-model"


def test_status_of_a_stack_that_died_shows_nothing_running(tmp_path: Path) -> None:
    dead = StackState(
        pid=2**22 + 1,
        started=1.0,
        state="ready",
        services=[ServiceRecord(name="api", state="ready", pid=2**22 + 2, started=1.0, port=1)],
    )
    data = status.as_data(Home.at(tmp_path), dead)
    assert data["state"] == "stopped"
    assert data["supervisor"] == {"pid": None}
    assert [(s["name"], s["state"], s["pid"]) for s in data["services"]] == [
        ("api", "stopped", None)
    ]


def test_without_a_screen_only_changes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    view = stack_view.StackView()
    view.progress("collecting torch")
    view.progress("collecting torch")
    for name in ("starting", "starting", "ready"):
        view.changed(StackState(services=[ServiceRecord(name="api", state=name, pid=7)]))
    assert capsys.readouterr().err.splitlines() == [
        "  collecting torch",
        "  api: starting (pid 7)",
        "  api: ready (pid 7)",
    ]


def test_the_demo_asks_one_question_a_line() -> None:
    lines = [json.loads(line) for line in demo.request_lines("m").splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines) == len(demo.QUESTIONS)
    assert {line["body"]["model"] for line in lines} == {"m"}


def test_the_summary_counts_what_pytest_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"/></testsuites>'
    )
    assert test_command.summarise(report) == "5 passed, 2 failed, 2 skipped"
    assert test_command.summarise(report, report) == "10 passed, 4 failed, 4 skipped"
    missing = test_command.summarise(report, tmp_path / "none")
    assert missing == "pytest did not end properly, 1 times of 2"


def test_quick_tests_run_first_and_benchmarks_never(tmp_path: Path) -> None:
    for name in ("e2e", "unit", "architecture", "benchmarks", "zoo", "empty"):
        (tmp_path / "tests" / name / "deep").mkdir(parents=True)
        if name != "empty":
            (tmp_path / "tests" / name / "deep" / "test_it.py").touch()
    assert test_command.folders(tmp_path, fast=False) == [
        "tests/architecture", "tests/unit", "tests/e2e", "tests/zoo",
    ]  # fmt: skip
    assert "tests/e2e" not in test_command.folders(tmp_path, fast=True)


def test_only_tests_that_leave_each_other_time_run_side_by_side() -> None:
    every = ["tests/architecture", "tests/unit", "tests/ui", "tests/e2e", "tests/zoo"]
    quick, waiting, alone = test_command.stages(every)
    assert quick[-2:] == every[:2]
    assert waiting[-1:] == every[2:3]
    assert {"-n", "loadfile"} <= set(quick) & set(waiting)
    assert alone == every[3:]
    assert test_command.stages(["tests/zoo"]) == [["tests/zoo"]]


def test_every_run_of_pytest_counts(tmp_path: Path) -> None:
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text("def test_it():\n    pass\n")
    bad.write_text("def test_it():\n    assert False\n")

    def run(*options: str) -> tuple[int, str]:
        runs = [[str(bad)], [str(good)]]
        return test_command.run_pytest(tmp_path, runs, list(options), lambda: prepared.append(1))

    prepared: list[int] = []
    assert run("-x") == (1, "0 passed, 1 failed, 0 skipped")
    assert prepared == []  # the first of two had not needed it
    assert run() == (1, "1 passed, 1 failed, 0 skipped")
    assert prepared == [1]
    assert run("-k", "test_good") == (0, "1 passed, 0 failed, 0 skipped")
    assert run("-k", "nothing")[0] == 5


def test_the_packages_of_missing_programs_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = [
        "chromium", "debootstrap", "docker.io", "gcc", "iptables", "libc6-dev", "systemd",
    ]  # fmt: skip
    assert test_command.missing_packages() == wanted
    for name in ("cc", "systemd-analyze", "dockerd", "docker", "chromium", "debootstrap"):
        (tmp_path / name).touch(mode=0o755)
    assert test_command.missing_packages() == []


def test_a_mistyped_path_of_tests_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    arguments = ["-k", "kill or drain", "tests", "--durations", "30"]
    assert test_command.paths_in(arguments, tmp_path) == ["tests"]
    for wrong in ("tests/nosuch", "tests/unit/test_x.py::test_y", "test_z.py"):
        with pytest.raises(typer.BadParameter, match="there is no"):
            test_command.paths_in([wrong], tmp_path)
