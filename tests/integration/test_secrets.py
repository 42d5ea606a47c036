"""A whole stack is used in every way that a secret takes part in; then they are looked for.

Looked at: every log, the event log as NATS stores it and as commands show it, every row in
Postgres, `config`, a backup, and the process list's command lines. Secrets are found only in files
of the owner: those that keep them, and `state.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import openai
import psutil
import pytest
from openai import OpenAI

from vllm_batch.labeling import webhook_endpoint
from vllm_batch.local.stack import CORE_ROLES, LocalStack

PASSWORD = "correct horse battery staple 42"
ENGINE_KEY = "engine-key-that-nobody-may-see"
LABEL_STUDIO_TOKEN = "label-studio-token-that-nobody-may-see"
CAPTURES = Path(__file__).parents[1] / "unit" / "labelstudio" / "captures"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    overrides = {
        "engine_api_key": ENGINE_KEY, "label_studio_api_key": LABEL_STUDIO_TOKEN,
        "label_studio_url": "http://127.0.0.1:9", "webhook_networks_allowed": ["127.0.0.0/8"],
        "webhook_retry_seconds": 60.0, "log_level": "DEBUG",
    }  # fmt: skip
    roles = CORE_ROLES | {"admin-ui", "bridge"}
    with LocalStack(
        tmp_path_factory.mktemp("home"), only=roles, settings_overrides=overrides
    ) as running:
        yield running


def cli(stack: LocalStack, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        (sys.executable, "-m", "vllm_batch.cli", *words, "--home", stack.home.root),
        capture_output=True, text=True, check=False, timeout=120, input=stdin,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli_json(stack: LocalStack, *words: str) -> Any:
    return json.loads(cli(stack, *words, "--json"))


@pytest.fixture(scope="module")
def secrets(stack: LocalStack) -> dict[str, str]:
    """Do everything that makes or takes a secret; return each by what it is."""
    home = stack.home
    found = {
        "API key": stack.api_key,
        "services' key": home.service_key_file.read_text("utf-8").strip(),
        "secret key": home.secret_key_file.read_text("utf-8").strip(),
        "webhook secret": home.webhook_secret_file.read_text("utf-8").strip(),
        "engine key": ENGINE_KEY, "Label Studio's token": LABEL_STUDIO_TOKEN,
        "password": PASSWORD, "wrong password": "not the password of anybody",
        "wrong key": "sk-vb-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "token in a delivery": "token-of-a-delivery-0123456789",
        "token in a query": "token-of-a-query-0123456789",
    }  # fmt: skip
    nats = json.loads((home.nats / "passwords.json").read_text("utf-8"))
    found |= {f"NATS password of {role}": password for role, password in nats.items()}
    made = cli_json(stack, "keys", "create", "--name", "one")
    found["made key"] = made["key"]
    found["rotated key"] = cli_json(stack, "keys", "rotate", made["id"])["key"]
    granted = cli_json(stack, "events", "grant", "siem", "--subjects", "job.>")
    found["tool's password"] = granted["nats_password"]
    cli(stack, "admin", "user", "add", "ada", "--role", "admin", "--password-stdin",
        stdin=f"{PASSWORD}\n")  # fmt: skip
    found["session"] = sign_in(stack, found)
    with OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0) as client:
        use_the_api(stack, client, found)
    return found


def sign_in(stack: LocalStack, found: dict[str, str]) -> str:
    """Sign in as ada, after one wrong try; return the session's cookie."""
    with httpx.Client(base_url=stack.admin_url, timeout=30) as http:
        for password, status in ((found["wrong password"], 401), (PASSWORD, 303)):
            page = http.get("/login").text
            token = re.search(r'name="token"[^>]*value="([^"]+)"', page)
            assert token is not None
            form = {"name": "ada", "password": password, "token": token[1], "next": "/"}
            assert http.post("/login", data=form).status_code == status
        return http.cookies["vllm_batch_admin"]


def use_the_api(stack: LocalStack, client: OpenAI, found: dict[str, str]) -> None:
    endpoint = client.webhooks.create(
        name="n", url="http://127.0.0.1:9/hook", event_types=["batch.completed"]
    )
    found["signing secret"] = str(endpoint.signing_secret)
    found["rotated signing secret"] = str(client.webhooks.rotate_secret(endpoint.id).signing_secret)
    line = {
        "custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": stack.model_name, "messages": [{"role": "user", "content": "hi"}]},
    }  # fmt: skip
    file = client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    deadline = time.monotonic() + 120
    while client.batches.retrieve(batch.id).status != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.chat.completions.create(
        model=stack.model_name, messages=[{"role": "user", "content": "hi"}]
    )
    with contextlib.suppress(openai.AuthenticationError):
        client.with_options(api_key=found["wrong key"]).models.list()
    root = stack.api_url.removesuffix("/v1")
    token = found["token in a delivery"]
    delivery = json.loads((CAPTURES / "webhook.PROJECT_UPDATED.json").read_text("utf-8"))
    body = delivery["request"]["body"]
    body["project"] |= {"token": token, "access_token": token}
    headers = {webhook_endpoint.SECRET_HEADER: found["webhook secret"]}
    for given, status in ((headers, 200), ({webhook_endpoint.SECRET_HEADER: "wrong"}, 401)):
        answer = httpx.post(f"{root}{webhook_endpoint.PATH}", json=body, headers=given, timeout=30)
        assert answer.status_code == status, answer.text
    query = {"api_key": found["token in a query"]}
    assert httpx.get(f"{stack.api_url}/models", params=query, timeout=30).status_code == 401


def assert_clean(text: str | bytes, secrets: dict[str, str], where: str) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    shown = {name for name, secret in secrets.items() if secret.encode() in data}
    bare = {
        name for name, secret in secrets.items()
        if secret.startswith("whsec_") and secret.removeprefix("whsec_").encode() in data
    }  # fmt: skip
    assert not shown | bare, f"{where} has: {sorted(shown | bare)}"


def files_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield what is below ``folder``; servers may take their files away meanwhile."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.read_bytes()


def test_no_log_has_a_secret(stack: LocalStack, secrets: dict[str, str]) -> None:
    logs = {path.name: path.read_text("utf-8") for path in stack.home.logs.iterdir()}
    assert {"api.log", "admin-ui.log", "labelstudio-bridge.log"} <= logs.keys()
    assert '"wrong name or password"' in logs["admin-ui.log"], "the logs are those of what was done"
    for name, text in logs.items():
        assert_clean(text, secrets, name)


def test_no_service_wanted_more_on_nats_than_it_may(
    stack: LocalStack, secrets: dict[str, str]
) -> None:
    for path in stack.home.logs.iterdir():
        said = [
            line for line in path.read_text("utf-8").splitlines() if "violation" in line.lower()
        ]
        assert said == [], path.name


def test_the_event_log_has_no_secret(stack: LocalStack, secrets: dict[str, str]) -> None:
    stored = b"".join(data for _, data in files_below(stack.home.nats / "store"))
    for type_ in ("apikey.rotated", "tool.granted", "admin.action_taken", "webhook.secret_rotated",
                  "labeling.webhook_received"):  # fmt: skip
        assert type_.encode() in stored, type_
    assert_clean(stored, secrets, "the event log")
    shown = cli(stack, "events", "tail", "--from", "beginning", "--no-follow", "--json")
    assert "apikey.rotated" in shown
    assert_clean(shown, secrets, "events tail")
    assert "sha256" not in shown.replace('"sha256": "", ', "").partition("apikey.created")[2][:400]
    for hidden in ("password_hash", "$argon2", "$2b$"):
        assert hidden not in shown


def test_postgres_has_no_secret(stack: LocalStack, secrets: dict[str, str]) -> None:
    async def dump() -> str:
        connection = await asyncpg.connect(stack.settings.postgres_dsn.get_secret_value())
        try:
            tables = await connection.fetch(
                "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            rows = [
                row["row"]
                for table in tables
                for row in await connection.fetch(f"SELECT t::text AS row FROM {table['name']} t")
            ]
        finally:
            await connection.close()
        return "\n".join(rows)

    rows = asyncio.run(dump())
    assert "batch_" in rows
    assert_clean(rows, secrets, "Postgres")


def test_commands_and_a_backup_show_no_secret(
    stack: LocalStack, secrets: dict[str, str], tmp_path: Path
) -> None:
    for words in (("config",), ("config", "--json"), ("status",), ("keys", "list"),
                  ("events", "grants"), ("events", "grants", "--config"), ("webhook", "list"),
                  ("events", "catalogue"), ("admin", "user", "list")):  # fmt: skip
        text = cli(stack, *words)
        assert text
        assert_clean(text, secrets, " ".join(words))
    folder = tmp_path / "backup"
    cli(stack, "backup", "create", str(folder))
    for path, data in files_below(folder):
        plain = gzip.decompress(data) if path.suffix == ".gz" else data
        assert_clean(plain, secrets, path.name)


def test_no_command_line_has_a_secret(stack: LocalStack, secrets: dict[str, str]) -> None:
    """Everybody on a machine sees everybody's command lines."""
    for status in stack.services():
        assert status.pid is not None
        assert_clean(" ".join(psutil.Process(status.pid).cmdline()), secrets, status.name)


def test_files_with_secrets_are_the_owners(stack: LocalStack, secrets: dict[str, str]) -> None:
    holding = set()
    for path, data in files_below(stack.home.root):
        if stack.home.blobs in path.parents:
            continue
        if any(secret.encode() in data for secret in secrets.values()):
            holding.add(str(path.relative_to(stack.home.root)))
            assert path.stat().st_mode & 0o077 == 0, path
    assert holding == {
        "api-key", "service-key", "secret-key", "label-studio-webhook-secret", "state.json",
        "nats/passwords.json", "nats/users.conf",
    }  # fmt: skip
