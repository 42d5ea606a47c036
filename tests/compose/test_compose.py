"""docker-compose.yml for real: a batch through containers that crash, are replaced and go away."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import nats.errors
import pytest
from nats.aio.client import Client as NatsClient
from openai import OpenAI

from tests import model_hub
from tests.compose.deployment import Deployment, wait_until
from tests.docker_engine import DockerEngine
from tests.faults.oracle import Oracle
from tests.faults.workload import Client, Workload, make, results_of, wait_until_known
from vllm_batch.labeling.webhook_endpoint import PATH, SECRET_HEADER

pytestmark = pytest.mark.timeout(3600)  # the first of them builds everything

MODEL = "simulated-model"
CONTAINER_USER = 10001
MIB = 1024 * 1024
# python:3.11.14-slim-bookworm unpacked; the gateway's image is to stay below 250 MB with it.
OFFICIAL_PYTHON_MIB = 131
GATEWAY_MIB_MAX = 250


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Client]:
    made = Client(deployment)
    yield made
    made.close()


def submit(client: Client, name: str, requests: int) -> Workload:
    return client.submit(make(name, requests, model=MODEL))


async def test_a_batch_outlives_crashes_and_an_upgrade(
    deployment: Deployment, client: Client
) -> None:
    work = submit(client, "crashes", 2500)
    for results, name in ((200, "api"), (500, "orchestrator"), (800, "cpu-worker"), (1100, "nats")):
        client.wait_progress(work, results)
        deployment.service(name).kill()
    last = submit(client, "upgrade", 2500)  # its own, so that it is not over before
    upgraded_at = results_of(client.wait_progress(last, 200))
    deployment.up("--force-recreate", "--no-deps", "api", "orchestrator", "cpu-worker", "watchdog")
    assert upgraded_at < len(last.lines)
    for one in (work, last):
        assert client.wait_ended(one).status == "completed"
    journal = deployment.volume("worker") / "journal"
    assert await Oracle(deployment, client, [work, last], journal).findings(kills=1) == []


async def test_what_was_done_outlives_down_and_up(deployment: Deployment, client: Client) -> None:
    work = submit(client, "before", 100)
    before = client.wait_ended(work)
    answers = client.content(before.output_file_id)
    deployment.compose("down")
    assert deployment.compose("ps", "--all", "--quiet") == ""
    deployment.up()
    after = client.batch(work)
    assert (after.status, after.output_file_id) == ("completed", before.output_file_id)
    assert client.content(after.output_file_id) == answers
    assert work.batch_id in {batch.id for batch in client.openai.batches.list()}
    assert client.wait_ended(submit(client, "after", 50)).status == "completed"


async def test_a_backup_is_restored_into_new_volumes(
    deployment: Deployment, client: Client, tmp_path: Path
) -> None:
    """As the documentation says it: a folder of the containers' user, and nothing but NATS."""
    work = submit(client, "kept", 50)
    before = client.wait_ended(work)
    answers = client.content(before.output_file_id)
    folder = tmp_path / "backup"
    folder.mkdir()
    os.chown(folder, CONTAINER_USER, CONTAINER_USER)

    def backup(deed: str) -> str:
        return deployment.cli("backup", deed, "/backup/monday", volume=f"{folder}:/backup")

    assert "wrote /backup/monday" in backup("create")
    assert "whole: /backup/monday" in backup("verify")
    deployment.compose("down", "--volumes", "--timeout", "1")
    assert "restored /backup/monday" in backup("restore")
    deployment.up()
    after = client.batch(work)
    assert (after.status, after.output_file_id) == ("completed", before.output_file_id)
    assert client.content(after.output_file_id) == answers
    assert client.wait_ended(submit(client, "after-restore", 50)).status == "completed"


def test_commands_of_the_operator_reach_the_api(deployment: Deployment, client: Client) -> None:
    work = submit(client, "listed", 10)
    assert work.batch_id in deployment.cli("batch", "list", "--json")
    assert deployment.cli("webhook", "list", "--json") == "[]"
    with pytest.raises(RuntimeError, match="vllm-batch health"):
        deployment.cli("status")


def test_a_key_made_in_the_container_opens_the_api(deployment: Deployment) -> None:
    made = deployment.compose(
        "exec", "--no-TTY", "api", "vllm-batch", "keys", "create", "--name", "second", "--json"
    )
    key = json.loads(made)["key"]
    with OpenAI(base_url=deployment.api_url, api_key=key) as opened:
        wait_until_known(opened)
        assert MODEL in {model.id for model in opened.models.list()}


def test_the_admin_ui_hands_out_results_to_who_signed_in(
    deployment: Deployment, client: Client
) -> None:
    work = submit(client, "looked-at", 100)
    ended = client.wait_ended(work)
    said = deployment.cli("admin", "user", "add", "ada", "--role", "admin", "--json")
    made = json.loads(said[said.index("{") :])
    with httpx.Client(base_url=deployment.admin_url, timeout=30) as browser:
        sign_in(browser, "ada", made["password"])
        assert browser.get(f"/batches/{work.batch_id}").status_code == 200
        for file_id in (ended.output_file_id, ended.error_file_id):
            assert file_id is not None
            sent = browser.get(f"/files/{file_id}/content")
            assert sent.text == client.openai.files.content(file_id).text
        deployment.compose("restart", "admin-ui")
        deployment.service("admin-ui").wait_ready()
        assert browser.get(f"/files/{ended.output_file_id}/content").status_code == 200


def sign_in(browser: httpx.Client, name: str, password: str) -> None:
    """Sign in to the admin UI as soon as it has heard of its first user."""
    wait_until(lambda: "Nobody may sign in yet" not in browser.get("/login").text)
    token = re.search(r'name="token"[^>]*value="([^"]+)"', browser.get("/login").text)
    assert token is not None
    form = {"name": name, "password": password, "token": token[1], "next": "/"}
    assert browser.post("/login", data=form).status_code == 303


@pytest.mark.parametrize("service", ["admin-ui", "api"])
def test_a_model_on_the_hub_is_looked_at(deployment: Deployment, service: str) -> None:
    """What the page asks before it estimates; on a root filesystem that cannot be written to."""
    networks = deployment.service(service).inspect()["NetworkSettings"]["Networks"]
    look = "from vllm_batch.model_source import look; print(look('org/there', adapter=False))"
    with model_hub.served(networks["vllm-batch_outside"]["Gateway"]) as url:
        found = deployment.compose(
            "exec", "--no-TTY", "--env", f"HF_ENDPOINT={url}", service, "python", "-c", look
        )
    assert "weight_bytes=1200" in found
    assert "warnings=()" in found


def test_the_bridge_lets_label_studio_in_and_nobody_else(deployment: Deployment) -> None:
    user = ("label-studio", deployment.secret("vllm_batch_ml_backend_password"))
    secret = deployment.secret("vllm_batch_label_studio_webhook_secret")
    created = {"action": "PROJECT_CREATED", "project": {"id": 1, "title": "Reviews"}}
    url = f"http://{deployment.service('labelstudio-bridge').address}:4082"
    with httpx.Client(base_url=url, timeout=30) as label_studio:
        assert label_studio.get("/health").status_code == 401
        assert label_studio.get("/health", auth=user).json()["status"] == "UP"
        for headers in ({}, {SECRET_HEADER: "guessed"}):
            assert label_studio.post(PATH, json=created, headers=headers).status_code == 401
        answer = label_studio.post(PATH, json=created, headers={SECRET_HEADER: secret})
        assert (answer.status_code, answer.json()) == (200, {"status": "recorded"})


def test_containers_are_confined(deployment: Deployment) -> None:
    for service in deployment.services():
        found = service.inspect()
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"], service.name
        assert host["CapDrop"] == ["ALL"], service.name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service.name
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service.name
        assert host["Memory"] > 0, service.name
        assert host["PidsLimit"] > 0, service.name
        assert found["Config"]["User"] not in {"", "root", "0"}, service.name


def test_only_the_api_and_the_admin_ui_listen_on_this_machine_and_only_on_loopback(
    deployment: Deployment,
) -> None:
    published = {
        (service.name, port, address["HostIp"])
        for service in deployment.services()
        for port, addresses in service.inspect()["NetworkSettings"]["Ports"].items()
        for address in addresses or ()
    }
    assert published == {
        ("vllm-batch-api-1", "4080/tcp", "127.0.0.1"),
        ("vllm-batch-admin-ui-1", "4081/tcp", "127.0.0.1"),
    }


def test_secrets_are_in_files_only(deployment: Deployment) -> None:
    secrets = {
        name: deployment.secret(name)
        for name in (
            "api_key",
            "nats_password_operator",
            "nats_password_api",
            "nats_password_worker",
            "postgres_password",
            "vllm_batch_secret_key",
        )
    }
    shown = deployment.compose("logs", "--no-color") + "".join(
        json.dumps(service.inspect()) for service in deployment.services()
    )
    assert [name for name, value in secrets.items() if value in shown] == []


def test_nats_lets_nobody_in_without_the_password(deployment: Deployment) -> None:
    with socket.create_connection((deployment.service("nats").address, 4222), 5) as connection:
        connection.sendall(b"CONNECT {}\r\nPING\r\n")
        with connection.makefile() as answers:
            assert "'Authorization Violation'" in answers.read()


def test_each_service_is_a_user_of_its_own_on_nats(deployment: Deployment) -> None:
    roles = {"api": "api", "orchestrator": "orchestrator", "watchdog": "watchdog",
             "labelstudio-bridge": "labelstudio-bridge", "admin-ui": "admin-ui",
             "cpu-worker": "worker"}  # fmt: skip
    for service, role in roles.items():
        url = deployment.compose("exec", service, "cat", "/run/secrets/vllm_batch_nats_url")
        assert url.strip() == deployment.secret(f"nats_url_{role}"), service


async def test_a_tool_is_granted_events_and_revoked(deployment: Deployment) -> None:
    """As the documentation says it: grant, have the server know, hear; revoke."""

    def events(*words: str) -> str:
        return deployment.cli("events", *words)

    def applied() -> None:
        deployment.write_secret("nats_tools", events("grants", "--config"))
        deployment.make_secrets()
        deployment.compose("kill", "--signal", "HUP", "nats")

    output = events("grant", "grafana", "--subjects", "job.completed.*", "--json")
    said = json.loads(output[output.index("{") : output.rindex("}") + 1])
    url = said["nats_url"].replace("@nats:", f"@{deployment.service('nats').address}:")

    async def may_connect() -> bool:
        client = NatsClient()
        try:
            await client.connect(url, inbox_prefix=said["nats_inbox_prefix"], allow_reconnect=False)
        except nats.errors.Error:
            return False
        finally:
            await client.close()
        return True

    assert not await may_connect()
    applied()
    async with asyncio.timeout(90):
        while not await may_connect():
            await asyncio.sleep(0.2)
    events("revoke", "grafana")
    applied()
    async with asyncio.timeout(90):
        while await may_connect():
            await asyncio.sleep(0.2)


def test_the_gateway_is_small(
    engine: DockerEngine, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    def size(image: str) -> int:
        return int(engine.docker("image", "inspect", "--format", "{{.Size}}", image))

    added = size("vllm-batch/gateway:0.1.0") - size("python:3.11.14-slim-bookworm")
    total = added / MIB + OFFICIAL_PYTHON_MIB
    with capsys.disabled():
        print(
            f"\ngateway image: {total:.0f} MiB ({added / MIB:.0f} of ours on the "
            f"{OFFICIAL_PYTHON_MIB} of python:3.11-slim), at most {GATEWAY_MIB_MAX}"
        )
    assert total < GATEWAY_MIB_MAX
