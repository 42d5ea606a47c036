"""TLS with an authority of the test's own: the official client over HTTPS, NATS with mutual TLS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion
from tests.authority import Authority
from tests.conftest import NatsServer

from vllm_batch.errors import EventStoreError
from vllm_batch.event_store import jetstream
from vllm_batch.local.stack import LocalStack
from vllm_batch.messaging.nats_users import authorization
from vllm_batch.messaging.permissions import Role
from vllm_batch.settings import Settings

PASSWORDS = {role: f"password-of-{role}" for role in Role}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "authority"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def tls_nats(tmp_path: Path, authority: Authority) -> Iterator[NatsServer]:
    cert, key = authority.issue("nats")
    folder = tmp_path / "nats"
    folder.mkdir()
    more = (
        f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{authority.ca}", verify: true }}'
    )
    server = NatsServer(folder, f"{more}\n{authorization(PASSWORDS)}")
    server.start()
    yield server
    server.stop()


def settings_of(server: NatsServer, tmp_path: Path, **tls: Path) -> Settings:
    url = f"nats://operator:{PASSWORDS[Role.OPERATOR]}@127.0.0.1:{server.port}"
    return Settings(home=tmp_path / "home", nats_url=url, **tls)


async def test_nats_takes_only_who_shows_a_certificate(
    tls_nats: NatsServer, tmp_path: Path, authority: Authority
) -> None:
    cert, key = authority.issue("client")
    known = settings_of(
        tls_nats, tmp_path, nats_tls_ca=authority.ca, nats_tls_cert=cert, nats_tls_key=key
    )
    async with jetstream.connect(known, source="test") as store:
        assert await store.last_sequence() == 0
    unknown = settings_of(tls_nats, tmp_path, nats_tls_ca=authority.ca)
    with pytest.raises(EventStoreError, match="refuses the user, password or certificate"):
        async with jetstream.connect(unknown, source="test"):
            raise AssertionError("connected without a certificate")
    other = Authority(tmp_path)
    foreign = settings_of(
        tls_nats, tmp_path, nats_tls_ca=other.ca, nats_tls_cert=cert, nats_tls_key=key
    )
    with pytest.raises(EventStoreError):
        async with jetstream.connect(foreign, source="test"):
            raise AssertionError("connected to a server of an unknown authority")


def say_hello(client: openai.OpenAI, model: str) -> ChatCompletion | None:
    """Return the answer; None while the gateway has not heard of the key or the model."""
    try:
        return client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hello"}]
        )
    except (openai.AuthenticationError, openai.NotFoundError, openai.InternalServerError):
        return None


def test_the_official_client_over_https_and_services_over_mutual_tls(
    tls_nats: NatsServer, tmp_path: Path, authority: Authority
) -> None:
    server_cert, server_key = authority.issue("api")
    cert, key = authority.issue("service")
    overrides = {
        "nats_url": settings_of(tls_nats, tmp_path).nats_url,
        "nats_tls_ca": authority.ca, "nats_tls_cert": cert, "nats_tls_key": key,
        "api_tls_cert": server_cert, "api_tls_key": server_key,
    }  # fmt: skip
    roles = {"api", "orchestrator", "worker"}
    with LocalStack(tmp_path / "home", only=roles, settings_overrides=overrides) as stack:
        secret = make_key(stack)
        assert stack.api_url.startswith("https://")
        with httpx.Client(verify=authority.context()) as http:
            client = openai.OpenAI(base_url=stack.api_url, api_key=secret, http_client=http)
            deadline = time.monotonic() + 60
            while (answer := say_hello(client, stack.model_name)) is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert answer.choices[0].message.content
            headers = http.get(f"{stack.api_url}/models").headers
            assert headers["strict-transport-security"] == "max-age=31536000"
        with httpx.Client() as http, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY"):
            http.get(f"{stack.api_url}/models")
        with pytest.raises(httpx.HTTPError):
            httpx.get(stack.api_url.replace("https:", "http:"), timeout=5)


def make_key(stack: LocalStack) -> str:
    import asyncio

    from vllm_batch import api_keys

    async def make() -> str:
        async with jetstream.connect(stack.settings, source="test") as store:
            _, secret = await api_keys.create(store, project="default", name="test")
            return secret

    return asyncio.run(make())
