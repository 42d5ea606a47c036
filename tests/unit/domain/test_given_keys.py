"""Keys whose secret a deployment brings along, and settings that it brings along as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_batch import api_keys
from vllm_batch.cli import config
from vllm_batch.errors import Rejected
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked
from vllm_batch.messaging import subjects
from vllm_batch.settings import Settings

GIVEN = "sk-vb-" + 8 * "w0rd"


async def events_of(store: MemoryEventStore) -> list[object]:
    return [r.event async for batch in store.read(subjects.ALL_API_KEYS) for r in batch]


async def test_a_given_key_is_made_once_and_stays_revoked() -> None:
    store = MemoryEventStore()
    first, secret = await api_keys.create(store, given=GIVEN, scopes=["read"])
    assert secret == GIVEN
    assert first.sha256 == api_keys.digest(GIVEN)
    await api_keys.revoke(store, first.key_id)
    again, _ = await api_keys.create(store, given=GIVEN, scopes=["admin"])
    assert again.key_id == first.key_id
    assert [type(event) for event in await events_of(store)] == [ApiKeyCreated, ApiKeyRevoked]


@pytest.mark.parametrize("given", ["", "admin", "sk-vb-" + "x" * 25])
async def test_a_given_key_that_could_be_guessed_is_refused(given: str) -> None:
    store = MemoryEventStore()
    with pytest.raises(Rejected, match="random characters"):
        await api_keys.create(store, given=given)
    assert await events_of(store) == []


def test_settings_come_from_secret_files_after_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "vllm_batch_nats_url").write_text("nats://user:hush@nats:4222\n")
    (secrets / "vllm_batch_secret_key").write_text("hush")
    (secrets / "postgres_password").write_text("for another program")
    (tmp_path / "settings.toml").write_text("nats_url = 'nats://file'\napi_port = 1\n")
    monkeypatch.setenv("VLLM_BATCH_SECRETS_DIR", str(secrets))
    settings = Settings(home=tmp_path)
    assert settings.nats_url == "nats://user:hush@nats:4222"
    assert settings.secret_key.get_secret_value() == "hush"
    assert settings.api_port == 1
    rows = {row["name"]: row for row in config.describe(settings, tmp_path / "settings.toml")}
    assert rows["secret_key"]["source"] == f"secret {secrets / 'vllm_batch_secret_key'}"
    assert rows["nats_url"]["value"] == "nats://**********@nats:4222"
    monkeypatch.setenv("VLLM_BATCH_NATS_URL", "nats://environment")
    assert Settings(home=tmp_path).nats_url == "nats://environment"
