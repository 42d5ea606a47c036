"""Commands on a machine, or in a container, whose servers are elsewhere: secrets say where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_batch.cli import output, status
from vllm_batch.cli.api_client import Address, address_of
from vllm_batch.cli.service_settings import is_elsewhere
from vllm_batch.local import leftovers, state
from vllm_batch.local.home import Home
from vllm_batch.local.state import StackState

KEY = "sk-vb-services"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.at(tmp_path / "home")
    made.root.mkdir()
    return made


@pytest.fixture
def deployed(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home without a stack, beside secrets as a container has them."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "vllm_batch_nats_url").write_text("nats://operator:secret@nats:4222")
    (secrets / "vllm_batch_gateway_api_key").write_text(KEY)
    monkeypatch.setenv("VLLM_BATCH_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("VLLM_BATCH_GATEWAY_URL", "http://api:4080/")
    return home


def run_a_stack(home: Home) -> None:
    """Have it look as if this process were the supervisor of a stack."""
    running = StackState(
        pid=os.getpid(), started=leftovers.started_at(os.getpid()), api_url="http://here/v1"
    )
    state.write(home.state_file, running)
    home.api_key_file.write_text("sk-vb-of-the-stack\n")


def test_the_api_is_that_of_the_deployment_where_no_stack_has_run(deployed: Home) -> None:
    assert address_of(deployed.root) == Address("http://api:4080/v1", KEY)


def test_the_api_of_a_stack_comes_first(deployed: Home) -> None:
    run_a_stack(deployed)
    assert address_of(deployed.root) == Address("http://here/v1", "sk-vb-of-the-stack")


def test_no_stack_and_no_key_is_said(home: Home) -> None:
    with pytest.raises(output.NotRunning, match="OPENAI_BASE_URL"):
        address_of(home.root)


def test_a_secret_names_the_servers_of_commands(deployed: Home) -> None:
    assert is_elsewhere(deployed.root)


def test_a_running_stack_is_meant_before_a_secret_but_not_before_the_environment(
    deployed: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_a_stack(deployed)
    assert not is_elsewhere(deployed.root)
    monkeypatch.setenv("VLLM_BATCH_NATS_URL", "nats://there:1")
    assert is_elsewhere(deployed.root)


def test_a_home_without_secrets_is_not_elsewhere(home: Home) -> None:
    assert not is_elsewhere(home.root)


@pytest.mark.parametrize("as_json", [False, True])
def test_status_says_where_to_look_instead(
    deployed: Home, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    with pytest.raises(output.NotRunning, match="vllm-batch health"):
        status.status(deployed.root, as_json)
    with pytest.raises(output.NotRunning, match="docker compose ps"):
        status.env(deployed.root, as_json)
    assert capsys.readouterr().out == ""
